import copy

import pytest
import torch
from shared_patches import SIDE as SIZE
from shared_patches import boxed as batch
from shared_patches import convolutions as network
from torch import nn

from raykb.engine.objective import Learner, Task
from raykb.selfsup.batch import BoxesBatch
from raykb.selfsup.scrl import SCRL, regions, scrl_loss

SMALL = {"projection": 5, "hidden": 7, "count": 3, "least": 4}


def method(**options):
    torch.manual_seed(3)
    return SCRL(Task(network(), steps=10), **SMALL | options)


def cosine(p, k):
    return (p @ k / (p.norm() * k.norm())).item()


def test_the_loss_is_the_formula_box_by_box():
    numbers = torch.Generator().manual_seed(0)
    p_1, p_2, k_1, k_2 = torch.randn(4, 6, 3, generator=numbers, dtype=torch.float64)
    wanted = sum(
        (2 - 2 * cosine(p_1[i], k_2[i])) + (2 - 2 * cosine(p_2[i], k_1[i])) for i in range(6)
    )
    assert scrl_loss(p_1, p_2, k_1, k_2).item() == pytest.approx(wanted / 6)


@pytest.mark.parametrize(("sign", "wanted"), [(1.0, 0.0), (-1.0, 8.0)])
def test_it_is_0_for_the_same_direction_and_8_for_the_opposite(sign, wanted):
    p = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert scrl_loss(p, 2 * p, 3 * sign * p, sign * p).item() == pytest.approx(wanted)


def test_targets_get_no_gradient():
    rows = [torch.randn(4, 3, requires_grad=True) for _ in range(4)]
    scrl_loss(*rows).backward()
    assert [row.grad is None for row in rows] == [False, False, True, True]


def test_the_mean_of_a_ramp_in_a_box_is_its_middle():
    ramp = torch.arange(7.0).expand(2, 1, 7, 7)
    boxes = torch.tensor([[[32.0, 32, 96, 128], [64, 40, 160, 90]]]).expand(2, -1, -1)
    found = regions(ramp, boxes, 224)
    assert found.shape == (2, 2, 1)
    torch.testing.assert_close(found[0, :, 0], torch.tensor([64.0 / 32, 112 / 32]))
    constant = regions(torch.full((2, 3, 7, 7), 0.7), boxes, 224)
    torch.testing.assert_close(constant, torch.full((2, 2, 3), 0.7))


def test_each_region_is_of_its_own_image():
    maps = torch.arange(3.0)[:, None, None, None].expand(3, 2, 4, 4)
    found = regions(maps, torch.tensor([[[0.0, 0, 4, 4]]]).expand(3, 2, -1), SIZE)
    assert found[:, :, 0].tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


def test_mirrored_boxes_of_mirrored_maps_have_the_same_means_where_these_are_aligned():
    boxes = batch().boxes[:, 0]
    maps = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    left, top, right, bottom = boxes.unbind(2)
    turned = torch.stack([SIZE - right, top, SIZE - left, bottom], 2)
    means = regions(maps, boxes, SIZE, aligned=True)
    assert (regions(maps.flip(3), turned, SIZE, aligned=True) - means).abs().max() < 1e-4
    assert (regions(maps.flip(3), turned, SIZE) - regions(maps, boxes, SIZE)).abs().max() > 0.1


def test_alignment_is_asked_for_of_both_networks():
    losses = [method(aligned=aligned)(network(), batch(), 0)["loss"] for aligned in (True, False)]
    assert losses[0] != losses[1]


def test_the_loss_is_of_the_regions_of_both_views_crosswise():
    objective, seen = method(), batch()
    loss = objective(network(), seen, 0)["loss"]
    rows = {}
    for name, backbone, head in (
        ("p", network(), nn.Sequential(objective.head, objective.predictor)),
        ("k", objective.teacher, objective.teacher_head),
    ):
        pooled = [regions(backbone.maps(seen.views[:, v]), seen.boxes[:, v], SIZE) for v in (0, 1)]
        rows[name] = head(torch.cat([part.flatten(0, 1) for part in pooled])).chunk(2)
    wanted = sum(
        (2 - 2 * cosine(p_1, k_2)) + (2 - 2 * cosine(p_2, k_1))
        for p_1, p_2, k_1, k_2 in zip(*rows["p"], *rows["k"], strict=True)
    )
    assert loss.item() == pytest.approx(wanted / 12, rel=1e-5)


def test_views_and_boxes_that_are_the_same_have_no_loss_without_a_predictor():
    objective, seen = method(), batch()
    objective.predictor = nn.Identity()
    same = seen._replace(
        views=seen.views[:, :1].expand(-1, 2, -1, -1, -1),
        boxes=seen.boxes[:, :1].expand(-1, 2, -1, -1),
    )
    assert objective(network(), same, 0)["loss"].item() == pytest.approx(0.0, abs=1e-5)
    assert objective(network(), seen, 0)["loss"].item() > 0.1


def test_images_without_regions_drop_out():
    objective, seen = method(), batch(valid=[True, False, True, False])
    wild = seen.views.clone()
    wild[[1, 3]] = 99.0
    terms = [objective(network(), seen._replace(views=views), 0) for views in (seen.views, wild)]
    assert torch.equal(terms[0]["loss"], terms[1]["loss"])
    assert terms[0]["matched"] == 0.5
    halves = BoxesBatch(*(part[[0, 2]] for part in seen))
    torch.testing.assert_close(objective(network(), halves, 0)["loss"], terms[0]["loss"])


def test_a_batch_without_regions_changes_nothing():
    learner = Learner(network(), method())
    before = copy.deepcopy(learner.state_dict())
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=1.0)
    terms = learner(batch(valid=[False] * 4), 0)
    assert terms["loss"] == 0
    terms["loss"].backward()
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name
    optimizer.step()
    learner.objective.after_step(learner.network, 0)
    for name, value in learner.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)


def test_one_box_of_one_image_is_enough():
    objective = method(count=1)
    one = batch(1)
    terms = objective(network(), one._replace(boxes=one.boxes[:, :, :1]), 0)
    terms["loss"].backward()
    assert terms["loss"].isfinite()


def test_the_teacher_follows_more_and_more_slowly_and_gets_no_gradient():
    objective, student = method(momentum=0.9), network(5)
    before = [parameter.clone() for parameter in objective.teacher.parameters()]
    objective.after_step(student, 0)
    for old, new, own in zip(
        before, student.parameters(), objective.teacher.parameters(), strict=True
    ):
        torch.testing.assert_close(own, 0.9 * old + 0.1 * new)
        assert not own.requires_grad
    at_the_end = [parameter.clone() for parameter in objective.teacher.parameters()]
    objective.after_step(student, 10)
    for own, old in zip(objective.teacher.parameters(), at_the_end, strict=True):
        assert torch.equal(own, old)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.5}, "momentum: 1.5, must be in 0..1"),
        ({"overlap": -0.5}, "overlap: -0.5, must be in 0..1"),
        ({"jitter": 1.0}, r"jitter: 1.0, must be in \[0, 1\)"),
        *((({name: 0}), f"{name}: 0, must be at least 1") for name in SMALL),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_a_network_without_maps_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no .*map_width, maps.*, which scrl needs"):
        SCRL(Task(nn.Linear(1, 1), steps=1))


def test_it_learns_to_say_the_same_of_what_it_has_seen():
    objective, own = method(momentum=0.9), network()
    learner, losses = Learner(own, objective), []
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    for step in range(60):
        loss = learner(batch(), step)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(own, step // 6)
    assert losses[-1] < 0.5 * losses[0]
