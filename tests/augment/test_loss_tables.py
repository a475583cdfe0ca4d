import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raykb.augment.choices import Choices, fixed_choices, mean_error, summary
from raykb.augment.hard_inputs import HARDENINGS, Hardening
from raykb.augment.loss_prediction import NAMES, chosen, ranking_loss, relative_targets
from raykb.augment.loss_tables import Target, joined, losses_piece, thumbnails, views_piece
from raykb.augment.ranks import soft_ranks
from raykb.data.candidates import CANDIDATES, mirrored, turned
from raykb.data.corruptions import CORRUPTIONS, EXTRA
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.engine.seeding import generator
from raykb.models import small_convnet

VIEW = CropFlipView(mean=[0.3], std=[0.3])


def image_set(count=12, side=12):
    shape = (count, 1, side, side)
    images = torch.randint(0, 256, shape, generator=generator(4, "images"), dtype=torch.uint8)
    ids = np.arange(count, dtype=np.int64)
    return ImageSet(images.numpy(), ids % 3, ids, ("a", "b", "c"))


def target():
    torch.manual_seed(0)
    network = small_convnet(3, 1, width=4)
    build = functools.partial(small_convnet, 3, 1, width=4)
    return Target(network=build, state=network.state_dict(), view=VIEW)


def test_hard_inputs_are_a_function_of_the_id_and_come_in_both_mirror_forms():
    images, harden = image_set(), HARDENINGS["same_fifteen"](versions=2)
    made = harden(torch.from_numpy(images.images), images.ids, 7)
    assert made.shape == (12, 4, 1, 12, 12)
    assert torch.equal(made[:, 1], mirrored(made[:, 0]))
    rows = np.array([5, 2])
    again = harden(torch.from_numpy(images.images[rows]), images.ids[rows], 7)
    assert torch.equal(again, made[torch.from_numpy(rows)])
    assert not torch.equal(made[:, 0], made[:, 2])
    assert not torch.equal(made, harden(torch.from_numpy(images.images), images.ids, 8))


def test_with_probability_zero_nothing_is_hard_and_the_leak_is_a_choice():
    images = torch.from_numpy(image_set().images)
    soft = HARDENINGS["extra_four"](probability=0.0)(images, np.arange(12), 0)
    assert torch.equal(soft[:, 0], images)
    assert set(HARDENINGS["same_fifteen"]().corruptions) == set(CORRUPTIONS)
    assert set(HARDENINGS["extra_four"]().corruptions) == set(EXTRA)
    with pytest.raises(
        ValueError, match=r"probability: 2, .*versions: 0, .*corruptions: \['fig'\]"
    ):
        Hardening(corruptions=["fig"], probability=2, versions=0)


def test_a_table_has_the_losses_of_the_network_and_pieces_make_the_whole():
    images, harden, own = image_set(), HARDENINGS["extra_four"](), target()
    whole = joined([losses_piece(own, images, harden, side=8, seed=1)])
    parts = [images.subset(np.arange(0, 5)), images.subset(np.arange(5, 12))]
    again = joined(losses_piece(own, part, harden, side=8, seed=1) for part in parts)
    assert whole["thumbnails"].shape == (72, 1, 8, 8)
    assert np.array_equal(whole["thumbnails"], again["thumbnails"])
    np.testing.assert_allclose(whole["losses"], again["losses"], rtol=1e-5)
    hard = harden(torch.from_numpy(images.images), images.ids, 1)[3, 2:3]
    logits = own.built()(VIEW.plain(CANDIDATES["z1.2"](hard)))
    loss = F.cross_entropy(logits, torch.tensor([int(images.labels[3])])).item()
    assert whole["losses"][3 * 6 + 2, NAMES.index("z1.2")] == pytest.approx(loss, rel=1e-4)


def test_another_network_has_another_key():
    own = target()
    moved = {name: value + 1 for name, value in own.state.items()}
    assert Target(network=own.network, state=moved, view=VIEW).key != own.key
    assert Target(network=own.network, state=dict(own.state), view=VIEW).key == own.key


def test_thumbnails_keep_what_has_their_size():
    images = torch.from_numpy(image_set().images)
    assert thumbnails(images, 12) is images
    assert thumbnails(images, 5).shape == (12, 1, 5, 5)


def test_the_oracle_is_never_worse_than_one_choice_and_random_ones_are_like_the_mean():
    draw = generator(5, "probabilities")
    probabilities = torch.rand(400, 18, 4, generator=draw).softmax(2)
    labels = torch.randint(0, 4, (400,), generator=draw)
    choices = fixed_choices(probabilities, labels, 0)
    errors = {name: mean_error(probabilities, labels, own) for name, own in choices.items()}
    singles = [
        mean_error(probabilities, labels, torch.full((400, 1), view)) for view in range(len(NAMES))
    ]
    assert errors["oracle"] <= min(singles)
    assert errors["identity"] == singles[0]
    assert errors["random_1"] == pytest.approx(np.mean(singles), abs=0.06)
    assert choices["five_crops"].shape == (400, 5)
    assert choices["random_4"].sort(1).values.diff(dim=1).min() > 0


def test_with_a_high_threshold_every_choice_is_the_identity_to_the_last_error():
    images = image_set()
    conditions = {
        f"{name}/{severity}": joined(
            [views_piece(target(), images, name, severity, side=8, seed=0)]
        )
        for name, severity in (("clean", 0), ("shot_noise", 5))
    }
    network = small_convnet(12, 1, width=4).eval()
    found = Choices(conditions, VIEW, 1e9, 0)(network, torch.device("cpu"))
    for kind in ("error", "clean_error"):
        assert found.figures[f"learnt_1/{kind}"] == found.figures[f"identity/{kind}"]
        assert found.figures[f"oracle/{kind}"] <= found.figures[kind]
    assert all(used[0] == 1 for used in found.details["used"].values())


def test_mce_is_told_of_all_fifteen_alone():
    fifteen = {f"{name}/{severity}": 0.5 for name in CORRUPTIONS for severity in (1, 5)}
    assert summary(fifteen | {"clean/0": 0.1}).keys() == {"error", "clean_error", "mce"}
    assert "mce" not in summary({"fog/1": 0.5})


class UprightOnly(nn.Module):
    """Is sure of class 0 where a bar is upright, and the less so the more it leans."""

    def forward(self, images):
        upright = images[:, 0, :, 14:18].mean((1, 2)) - images[:, 0].mean((1, 2))
        return torch.stack([20 * upright, torch.zeros(len(images))], dim=1)


def bars(count):
    """Return upright bars that were turned by -20, 0 or 20 degrees, and by which of them."""
    bar = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    bar[..., 14:18] = 255
    which = torch.arange(count) % 3
    forms = torch.cat([turned(bar, degrees=degrees) for degrees in (-20.0, 0.0, 20.0)])
    noise = torch.randint(-20, 21, (count, 1, 32, 32), generator=generator(6, "noise"))
    return (forms[which] + noise).clamp(0, 255).to(torch.uint8), which


def test_a_predictor_learns_to_turn_back_what_was_turned():
    images, which = bars(240)
    own = Target(network=UprightOnly, state={}, view=VIEW)
    geometry = [CANDIDATES[name] for name in ("n", "r-20", "r20")]
    made = own.log_probabilities(UprightOnly(), images, geometry)
    losses = torch.full((240, 12), 5.0)
    losses[:, :3] = -made[..., 0]
    torch.manual_seed(0)
    network = small_convnet(12, 1, width=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    thumbs, targets = VIEW.plain(thumbnails(images, 16)), relative_targets(losses)
    for _ in range(40):
        optimizer.zero_grad()
        probabilities = network(thumbs[:180]).softmax(1)
        ranking_loss(soft_ranks(probabilities, 0.05), targets[:180]).backward()
        optimizer.step()
    found = chosen(network.eval()(thumbs[180:]).detach().softmax(1), 1)[:, 0]
    back = torch.tensor([NAMES.index(name) for name in ("r20", "n", "r-20")])[which[180:]]
    assert (found == back).float().mean() > 0.9
