import numpy as np
import pytest
import torch
from mapped import CPU, Maps, coloured
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from raykb.evaluate.backbone import Judged
from raykb.evaluate.linear_probe import Probe
from raykb.evaluate.localisation import Heads, Localisation, Positions, middles, ridge

SMALL = {"train_scenes": 60, "test_scenes": 40, "background": "constant"}


def figures(make, seed=1, **settings):
    return Localisation(**SMALL | settings)(
        Judged(Maps(make), CPU, coloured(60, seed=seed))
    ).figures


def reaching(images):
    """Maps of cells of 2 pixels: their colours, and how far the object reaches from them."""
    seen = F.max_pool2d(images, 2)  # (N, 3, h, w)
    there, parts = seen.amax(1), [seen]
    for axis in (2, 1):
        line, side = there.amax(axis), there.shape[3 - axis]
        first = line.argmax(1)
        last = side - 1 - line.flip(1).argmax(1)
        place = torch.arange(side)
        for reach in (place - first[:, None], last[:, None] - place):
            parts.append(reach.unsqueeze(axis).expand_as(there)[:, None].float())
    return torch.cat(parts, 1)


def test_maps_that_know_class_and_reach_of_an_object_find_it():
    found = figures(reaching)
    assert found["top1"] == 1.0
    assert found["iou"] > 0.8
    assert found["top1_iou50"] > 0.97


def test_maps_that_know_the_class_alone_find_no_box():
    found = figures(lambda images: F.avg_pool2d(images, 2))
    assert found["top1"] > 0.95
    assert found["iou"] < figures(reaching)["iou"] - 0.1


def test_maps_that_know_nothing_are_worth_what_chance_is():
    found = figures(torch.ones_like)
    assert found["top1"] == pytest.approx(1 / 3, abs=3 * (2 / 9 / 40) ** 0.5)
    assert found["top1_iou50"] < 0.2


def test_the_box_is_that_of_ridge_regression_and_what_never_changes_does_no_harm():
    numbers = torch.Generator().manual_seed(0)
    rows, targets = torch.randn(50, 5, generator=numbers), torch.randn(50, 4, generator=numbers)
    rows[:, 2] = 1.0
    weight, bias = ridge(rows, targets, 0.1)
    theirs = Ridge(alpha=0.1 * 50).fit(rows.numpy(), targets.numpy())
    torch.testing.assert_close(weight.T, torch.from_numpy(theirs.coef_), rtol=0, atol=1e-5)
    torch.testing.assert_close(bias, torch.from_numpy(theirs.intercept_), rtol=0, atol=1e-5)
    assert ridge(rows, targets, 0.0)[0].isfinite().all()


def test_middles_are_of_cells_row_by_row():
    wanted = [[1 / 6, 0.25], [0.5, 0.25], [5 / 6, 0.25], [1 / 6, 0.75], [0.5, 0.75], [5 / 6, 0.75]]
    torch.testing.assert_close(middles(torch.zeros(1, 4, 2, 3)), torch.tensor(wanted))


def test_positions_in_a_box_are_those_whose_middles_are():
    at = middles(torch.zeros(1, 1, 2, 2))
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.3, 0.3, 0.7, 0.7]])
    inside = Positions(torch.zeros(2, 4, 1), at, boxes, torch.zeros(2)).inside
    assert inside.tolist() == [[True, False, True, False], [False] * 4]


def test_the_most_certain_position_says_class_and_box():
    rows = torch.tensor(
        [[[9.0, 1.0], [2.0, 4.0], [0.0, 3.0], [9.0, 9.0]]]
    )  # of the ground, class 1
    still = (torch.zeros(2), torch.ones(2))
    weight = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    heads = Heads(
        Probe(*still, weight, torch.zeros(3)),
        torch.tensor([[0.0] * 4, [0.1, 0.05, -1.0, 0.0]]),
        torch.tensor([0.0, 0.1, 0.0, 0.9]),
    )
    at = middles(torch.zeros(1, 2, 2, 2))
    labels, boxes = heads.found(Positions(rows, at, torch.zeros(1, 4), torch.zeros(1)))
    assert labels.tolist() == [1]  # of the third position, 0.25, 0.75
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0.5, 0.25, 1.0]]))


def test_a_class_that_is_right_counts_with_half_a_box_alone():
    class Given(Localisation):
        def positions(self, judged, examples, split):
            boxes = torch.tensor([[0.0, 0.0, 1.0, 0.5]]).repeat(4, 1)
            boxes[:, 3] = torch.tensor([1.0, 0.5, 0.49, 0.5])
            return Positions(None, None, boxes, torch.tensor([0, 1, 2, 0]))

        def fitted(self, train, classes):
            return self

        def found(self, positions):
            return torch.tensor([0, 1, 2, 1]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(4, 1)

    found = Given()(Judged(None, CPU, coloured(4))).figures
    assert found == pytest.approx(
        {"top1": 0.75, "iou": (1 + 0.5 + 0.49 + 0.5) / 4, "top1_iou50": 0.5}
    )


def test_details_are_what_is_found_in_the_first_scenes_of_test_images():
    protocol, judged = Localisation(**SMALL), Judged(Maps(reaching), CPU, coloured(60))
    details = protocol(judged).details
    scenes = protocol.scenes(judged.by.test, details["seed"], "test").read(np.arange(8)).arrays
    assert details["labels"] == scenes["labels"][:, 0].tolist()
    assert np.abs(np.array(details["boxes"]) * 24 - scenes["boxes"][:, 0]).mean() < 1.5


def test_maps_so_coarse_that_no_position_lies_in_an_object_are_refused():
    with pytest.raises(ValueError, match="of 1 positions of the maps none lies in an object"):
        figures(lambda images: images.mean((2, 3), True), scale=(0.1, 0.1))


def test_what_is_seen_belongs_to_the_seed_and_all_settings_matter():
    others = [
        {"seed": 2},
        {"train_scenes": 30},
        {"test_scenes": 39},
        {"canvas": 3.0},
        {"scale": (0.9, 1.0)},
        {"background": "texture"},
        {"weight_decay": 1.0},
        {"iterations": 1},
    ]
    found = [figures(reaching, **other)["iou"] for other in [{}, *others]]
    assert figures(reaching)["iou"] == found[0]
    assert len(set(found)) == len(found)


def test_settings_that_mean_nothing_are_refused():
    wrong = {"train_scenes": 0, "test_scenes": 0, "iterations": 0, "weight_decay": -1}
    with pytest.raises(ValueError, match=r"weight_decay: -1.*; train_scenes: 0.*; test_.*; iterat"):
        Localisation(**wrong)
    with pytest.raises(ValueError, match=r"scale: .*, must be .* up to the canvas of 1"):
        Localisation(canvas=1.0, scale=(0.5, 1.5))
