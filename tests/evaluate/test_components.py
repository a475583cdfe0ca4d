"""The largest piece is what stays, and only where cross-validation says that it should."""

import json

import numpy as np
import pytest

from raykb.evaluate.components import (
    WAYS,
    Kept,
    chosen,
    component_scores,
    largest_component,
    largest_components,
)

NAN = float("nan")
NAMES = ("background", "organ", "lesion")


def pieces(*boxes, size=(6, 7, 8)):
    mask = np.zeros(size, bool)
    for box in boxes:
        mask[tuple(slice(*side) for side in box)] = True
    return mask


LARGE = ((0, 3), (0, 3), (0, 3))
SMALL = ((4, 6), (5, 7), (6, 8))


def test_the_largest_piece_stays():
    assert np.array_equal(largest_component(pieces(SMALL, LARGE)), pieces(LARGE))


def test_pieces_that_touch_at_a_corner_are_one():
    touching = pieces(LARGE, ((3, 4), (3, 4), (3, 4)))
    assert np.array_equal(largest_component(touching), touching)


@pytest.mark.parametrize("mask", [pieces(), pieces(LARGE)])
def test_one_piece_and_none_stay_as_they_are(mask):
    assert np.array_equal(largest_component(mask), mask)


def test_of_equal_pieces_the_first_stays():
    mask = np.array([[1, 1, 0, 0, 1, 1]], bool)
    assert largest_component(mask).tolist() == [[True, True, False, False, False, False]]


def test_labels_that_are_named_lose_their_smaller_pieces():
    segmentation = np.array([1, 1, 0, 1, 0, 2, 2, 0, 2, 3])
    assert largest_components(segmentation, [1]).tolist() == [1, 1, 0, 0, 0, 2, 2, 0, 2, 3]
    assert largest_components(segmentation, [1, 2, 3]).tolist() == [1, 1, 0, 0, 0, 2, 2, 0, 0, 3]
    assert segmentation[3] == 1


def test_of_the_foreground_the_piece_of_all_labels_together_stays():
    segmentation = np.array([1, 2, 2, 0, 1, 1, 0, 2])
    assert Kept(foreground=True).of(segmentation, NAMES).tolist() == [1, 2, 2, 0, 0, 0, 0, 0]
    assert Kept(labels=("organ",)).of(segmentation, NAMES).tolist() == [0, 2, 2, 0, 1, 1, 0, 2]
    both = Kept(foreground=True, labels=("organ", "lesion"))
    assert both.of(np.array([1, 0, 2, 1, 2, 2]), NAMES).tolist() == [0, 0, 0, 1, 2, 2]
    assert Kept().of(segmentation, NAMES).tolist() == segmentation.tolist()


def test_each_way_has_the_dice_of_each_label():
    prediction, reference = np.array([1, 1, 0, 2, 0, 1]), np.array([1, 1, 0, 2, 0, 0])
    assert component_scores(prediction, reference, NAMES) == {
        "plain": {"organ": 0.8, "lesion": 1.0},
        "foreground": {"organ": 1.0, "lesion": 0.0},
        "labels": {"organ": 1.0, "lesion": 1.0},
        "both": {"organ": 1.0, "lesion": 0.0},
    }


def ways(plain, foreground, labels, both):
    """The scores of a case, of organ and lesion each."""
    each = (plain, foreground, labels, both)
    return {
        way: dict(zip(NAMES[1:], row, strict=True)) for way, row in zip(WAYS, each, strict=True)
    }


@pytest.mark.parametrize(
    ("case", "kept"),
    [
        (ways((0.8, 0.6), (0.9, 0.6), (0.8, 0.6), (0.9, 0.6)), Kept(foreground=True)),
        # as it is, unless something is gained
        (ways((0.8, 0.6), (0.8, 0.6), (0.8, 0.6), (0.8, 0.6)), Kept()),
        # the mean is higher and one label lower: that is refused, and labels are asked alone
        (ways((0.8, 0.6), (1.0, 0.5), (0.9, 0.3), (1.0, 0.2)), Kept(labels=("organ",))),
        # a label by itself is judged after the foreground
        (ways((0.8, 0.6), (0.9, 0.7), (1.0, 1.0), (0.9, 0.8)), Kept(True, ("lesion",))),
        # what is not defined counts in no mean
        (ways((0.8, NAN), (0.9, NAN), (0.9, NAN), (0.9, NAN)), Kept(foreground=True)),
        (ways((NAN, NAN), (NAN, NAN), (NAN, NAN), (NAN, NAN)), Kept()),
        (ways((0.8, None), (0.9, None), (0.9, None), (0.9, None)), Kept(foreground=True)),
    ],
)
def test_cross_validation_says_what_helps(case, kept):
    assert chosen([case]).kept == kept


def test_the_choice_is_that_of_the_mean_over_cases_and_tells_dice_before_and_after():
    gains = ways((0.5, 0.6), (0.4, 0.6), (0.9, 0.6), (0.4, 0.6))
    loses = ways((0.8, 0.6), (0.8, 0.6), (0.7, 0.5), (0.7, 0.5))
    found = chosen([gains, loses])
    assert found.kept == Kept(labels=("organ",))
    assert found.before == pytest.approx({"organ": 0.65, "lesion": 0.6})
    assert found.after == pytest.approx({"organ": 0.8, "lesion": 0.6})
    assert chosen([gains, loses, loses, loses, loses, loses]).kept == Kept()


def test_what_was_chosen_can_be_written_and_told():
    found = chosen([ways((0.8, NAN), (0.9, NAN), (1.0, NAN), (1.0, NAN))])
    assert json.loads(json.dumps(found.record(), allow_nan=False)) == {
        "foreground": True,
        "labels": ["organ"],
        "dice": {"before": {"organ": 0.8, "lesion": None}, "after": {"organ": 1.0, "lesion": None}},
    }
    assert str(found.kept) == "all labels together, organ"
    assert str(Kept()) == ""
