import pytest
import torch
from torch import nn

from raykb.augment.loss_prediction import (
    IDENTITY,
    NAMES,
    LossBatch,
    LossPrediction,
    chosen,
    predicted,
    ranking_loss,
    relative_targets,
)
from raykb.augment.ranks import ranks, soft_ranks, taught_sorter
from raykb.data.candidates import CANDIDATES, CROPS, cropped, mirrored, turned, views
from raykb.engine.objective import Task
from raykb.engine.seeding import generator

LOSSES = torch.randn(5, 12, generator=generator(0, "losses")).abs()


def images(channels=3, side=16):
    shape = (3, channels, side, side)
    return torch.randint(0, 256, shape, generator=generator(1, "images"), dtype=torch.uint8)


def test_the_largest_value_has_the_smallest_rank():
    found = ranks(torch.tensor([[3.0, 1.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 1.0, 2 / 3]]))


def test_equal_values_share_a_rank():
    found = ranks(torch.tensor([[2.0, 3.0, 2.0, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[2.5, 1.0, 2.5, 4.0]]) / 4)


def test_soft_ranks_are_ranks_as_the_temperature_goes_to_zero():
    torch.testing.assert_close(soft_ranks(LOSSES, 1e-6), ranks(LOSSES))
    assert soft_ranks(LOSSES, 1e6).std(1).max() < 1e-3


def test_a_relative_target_is_a_distribution_whose_top_has_the_least_loss():
    targets = relative_targets(LOSSES, 0.7)
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
    assert torch.equal(targets.argmax(1), LOSSES.argmin(1))


def test_the_loss_is_zero_in_the_right_order_and_does_not_see_a_constant():
    targets = relative_targets(LOSSES)
    assert ranking_loss(soft_ranks(targets.square(), 1e-7), targets).item() < 1e-9
    wrong = soft_ranks((-targets).softmax(1), 0.05)
    loss = ranking_loss(wrong, targets)
    assert loss > 0.05
    moved = ranking_loss(wrong, relative_targets(LOSSES + 3))
    torch.testing.assert_close(moved, loss)


def test_what_is_nearly_right_counts_only_without_tolerance():
    targets = torch.tensor([[0.5, 0.3, 0.2]])
    near = soft_ranks(torch.tensor([[0.4, 0.35, 0.25]]), 0.05)
    assert ranking_loss(near, targets, 0.05) == 0
    assert ranking_loss(near, targets) > 0


def test_a_sorter_is_taught_the_ranks_alike_each_time_and_has_a_gradient():
    sorter = taught_sorter(12, 200)
    values = (LOSSES * 3).log_softmax(1).requires_grad_()
    found = sorter(values)
    assert (found - ranks(values)).abs().mean() < 0.08  # of ranks that are 0.083 apart
    assert torch.equal(taught_sorter(12, 200)(values), found)
    found[:, 3].sum().backward()
    assert (values.grad[:, 3] < 0).all()  # what is larger has a smaller rank
    assert not any(p.requires_grad for p in sorter.parameters())


def test_a_sorter_is_not_taught_where_there_is_no_memory():
    with torch.device("meta"):
        assert taught_sorter(12, 10**9)(torch.zeros(2, 12)).is_meta


def test_the_best_are_chosen_each_once_but_for_the_identity():
    probabilities = torch.full((2, 12), 0.01)
    probabilities[0, [3, 5, 7]] = torch.tensor([0.5, 0.3, 0.2])
    probabilities[1, IDENTITY] = 0.9
    assert chosen(probabilities, 3).tolist() == [[3, 5, 7], [IDENTITY] * 3]
    assert chosen(probabilities, 2, threshold=1e3).tolist() == [[IDENTITY] * 2] * 2


def test_a_mirrored_image_exchanges_the_rotations_and_a_symmetric_one_keeps_its_prediction():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))
    image = torch.rand(1, 1, 8, 8, generator=generator(2, "thumbnail"))
    probabilities, other = predicted(network, image), predicted(network, mirrored(image))
    swap = [NAMES.index({"r20": "r-20", "r-20": "r20"}.get(name, name)) for name in NAMES]
    torch.testing.assert_close(other, probabilities[:, swap])
    symmetric = predicted(network, (image + mirrored(image)) / 2)
    torch.testing.assert_close(symmetric, symmetric[:, swap])


def test_there_are_the_twelve_of_the_code_and_they_keep_the_form_of_images():
    assert " ".join(NAMES) == "n r-20 r20 z0.8 z1.2 c s0.2 s0.5 s3 s4 l0.5 l2.0"
    for channels in (1, 3):
        found = views(images(channels), [*CANDIDATES.values(), *CROPS.values()])
        assert found.shape == (3, 17, channels, 16, 16)
        assert found.dtype == torch.uint8
        assert torch.equal(found[:, IDENTITY], images(channels))
        grey = torch.equal(found[:, NAMES.index("l2.0")], images(channels))
        assert grey == (channels == 1)


def test_geometry_turns_about_the_middle_and_leaves_no_black():
    square = images()
    torch.testing.assert_close(turned(square, degrees=90), square.rot90(1, (2, 3)))
    lines = torch.zeros(1, 1, 15, 15, dtype=torch.uint8)
    lines[..., 7, 8:] = 200  # to the right: counter-clockwise it points up
    up = turned(lines, degrees=90)
    assert up[0, 0, :7, 7].min() == 200
    bright = torch.full((1, 3, 12, 20), 90, dtype=torch.uint8)
    for each in CANDIDATES.values():
        assert torch.equal(each(bright), bright)
    assert torch.equal(cropped(bright, top=1.0, left=0.0), bright)


def test_a_zoom_shows_the_middle_larger_and_its_inverse_smaller():
    middle = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    middle[..., 6:14, 6:14] = 255
    sizes = [turned(middle, zoom=zoom).float().sum() for zoom in (0.8, 1.0, 1.2)]
    assert sizes[0] < 0.8 * sizes[1]
    assert sizes[2] > 1.2 * sizes[1]


def test_rows_that_differ_in_their_images_alone_are_turned_alike_on_oblong_images():
    oblong = torch.zeros(1, 1, 9, 31, dtype=torch.uint8)
    oblong[..., 4, :] = 255
    found = turned(oblong, degrees=20)[0, 0].float()
    along = torch.tensor([found[:, x].argmax() for x in (10, 15, 20)]).tolist()
    assert along == [6, 4, 2]  # 5 pixels to the right are 1.8 up


@pytest.mark.parametrize("steps", [0, 200], ids=["pairwise", "sorter"])
def test_the_objective_learns_the_order_and_tells_the_regret(steps):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 12))
    settings = {"rank_temperature": 0.1, "temperature": 0.5, "sorter_steps": steps}
    objective = LossPrediction(Task(network, 1, 12), **settings)
    batch = LossBatch(torch.rand(5, 1, 2, 2, generator=generator(3, "batch")), LOSSES)
    terms = objective(network, batch, 0)
    terms["loss"].backward()
    assert network[1].weight.grad.abs().sum() > 0
    assert terms["regret"] > 0
    with pytest.raises(ValueError, match=r"tolerance: -1.*temperature: 0, must be above 0"):
        LossPrediction(Task(network, 1, 12), temperature=0, tolerance=-1)
