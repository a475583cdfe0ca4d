"""Dice of whole volumes by label and case, with holes where a label is not defined."""

import json
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from raykb.evaluate.segmentation import Segmentation
from raykb.evaluate.sliding_window import SlidingWindow
from raykb.metrics.surface import surface_dice

pytest.importorskip("monai", reason="in the extra 'medical'")

CPU = torch.device("cpu")
LABELS = ("background", "organ", "lesion")
WINDOW = SlidingWindow(tile=(4, 4, 4), batch_size=2)


@dataclass
class Case:
    name: str
    image: np.ndarray
    label: np.ndarray
    spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0)


class Bands(nn.Module):
    """Says the label that the first channel has as its value."""

    def __init__(self, classes=3):
        super().__init__()
        self.register_buffer("values", torch.arange(float(classes)).reshape(1, -1, 1, 1, 1))

    def forward(self, images):
        return -20 * (images[:, :1] - self.values).abs()


def case(name, said, label, size=(5, 6, 9)):
    """Return a volume of which :class:`Bands` says some rows to be 1 or 2, and its label."""
    image, true = (np.zeros(size, kind) for kind in (np.int16, np.uint8))
    for array, rows in ((image, said), (true, label)):
        for number, row in rows:
            array[row] = number
    return Case(name, image[None], true)


CASES = [
    case("a", [(1, slice(0, 2)), (2, 4)], [(1, slice(0, 2)), (2, 4)]),
    case("b", [(1, slice(0, 2))], [(1, slice(1, 3))]),  # half of it, and no lesion anywhere
    case("c", [], [(2, 3)]),  # a lesion that is not found, and no organ
]


def evaluated(cases=CASES, labels=LABELS, network=None):
    return Segmentation(cases, labels, WINDOW)(network or Bands().eval(), CPU)


def test_dice_is_that_of_each_label_and_case():
    figures, details = evaluated()
    assert details["dice"] == {
        "a": {"organ": 1.0, "lesion": 1.0},
        "b": {"organ": 0.5, "lesion": None},
        "c": {"organ": None, "lesion": 0.0},
    }
    assert figures == pytest.approx(
        {"dice/organ": 0.75, "dice/lesion": 0.5, "dice": 0.625}, abs=1e-12
    )


def test_surface_dice_has_spacing_and_tolerance():
    evaluation = replace(Segmentation(CASES, LABELS, WINDOW), tolerance_mm=2.0)
    figures, details = evaluation(Bands().eval(), CPU)
    wanted = {}
    for one in CASES:
        said = one.image[0]
        wanted[one.name] = {
            name: surface_dice(said == number, one.label == number, (2.0, 1.0, 1.0), 2.0)
            for number, name in enumerate(LABELS)
            if number
        }
    assert details["nsd"]["b"] == {"organ": wanted["b"]["organ"], "lesion": None}
    assert 0.5 < wanted["b"]["organ"] <= 1
    assert details["nsd"]["a"] == {"organ": 1.0, "lesion": 1.0}
    assert figures["nsd/lesion"] == 0.5
    assert figures["nsd"] == pytest.approx((figures["nsd/organ"] + 0.5) / 2)
    assert figures["dice"] == evaluated().figures["dice"]
    strict = replace(evaluation, tolerance_mm=0.0)(Bands().eval(), CPU)
    assert strict.figures["nsd/organ"] < figures["nsd/organ"]


def test_a_label_that_no_case_has_is_left_out():
    figures, _ = evaluated(CASES[1:2])
    assert figures == {"dice/organ": 0.5, "dice": 0.5}
    nothing, details = evaluated([case("d", [], [])])
    assert nothing == {}
    assert details == {"dice": {"d": {"organ": None, "lesion": None}}}


def test_details_are_json():
    details = evaluated().details
    assert json.loads(json.dumps(details, allow_nan=False)) == details


def test_what_the_largest_pieces_alone_are_worth_stands_beside_dice_if_it_is_asked_for():
    scattered = case("a", [(1, slice(0, 2)), (1, 4)], [(1, slice(0, 2))])
    evaluation = replace(Segmentation([scattered], LABELS, WINDOW), components=True)
    figures, details = evaluation(Bands().eval(), CPU)
    assert json.loads(json.dumps(details, allow_nan=False)) == details
    whole = {"organ": 1.0, "lesion": None}
    found = details["components"]["a"]
    assert found["plain"] == details["dice"]["a"] == {"organ": 0.8, "lesion": None}
    assert found["labels"] == found["foreground"] == found["both"] == whole
    assert figures["dice/organ"] == 0.8


def test_volumes_that_are_mapped_are_read(tmp_path):
    mapped = []
    for one in CASES:
        arrays = {"image": one.image, "label": one.label}
        for name, array in arrays.items():
            np.save(tmp_path / f"{one.name}_{name}.npy", array)
        paths = [tmp_path / f"{one.name}_{name}.npy" for name in arrays]
        mapped.append(Case(one.name, *(np.load(path, mmap_mode="r") for path in paths)))
    assert evaluated(mapped) == evaluated()


def test_the_network_is_left_as_it_was_and_the_evaluation_pickles():
    network = nn.Conv3d(1, 3, 1).eval()
    before = [parameter.clone() for parameter in network.parameters()]
    evaluation = Segmentation(CASES, LABELS, WINDOW)
    again = pickle.loads(pickle.dumps(evaluation))
    assert again(network, CPU) == evaluation(network, CPU)
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None


def test_a_tolerance_below_0_is_refused():
    with pytest.raises(ValueError, match=r"tolerance_mm: -1.0, must be at least 0, or null"):
        Segmentation(CASES, LABELS, WINDOW, tolerance_mm=-1.0)


def test_a_network_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="network: has 2 classes, must have 3, as there are"):
        evaluated(network=Bands(2))


@pytest.mark.parametrize(
    ("cases", "labels", "message"),
    [
        ([], LABELS, r"cases: \[\], must be at least one, each of another name"),
        ([CASES[0]] * 2, LABELS, r"cases: \['a', 'a'\], must be at least one, each of another"),
        (CASES, ("background",), r"labels: \['background'\], must be at least two, all different"),
        (CASES, ("a", "b", "b"), r"labels: \['a', 'b', 'b'\], must be at least two, all different"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(cases, labels, message):
    with pytest.raises(ValueError, match=message):
        Segmentation(cases, labels, WINDOW)
