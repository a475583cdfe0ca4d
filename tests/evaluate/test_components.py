"""The largest piece is what stays, and only where cross-validation says that it should."""

import numpy as np
import pytest

from raykb.evaluate.components import helps, largest_component, largest_components


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


NAN = float("nan")


@pytest.mark.parametrize(
    ("plain", "processed", "better"),
    [
        ([0.8, 0.6], [0.9, 0.6], True),
        ([0.8, 0.6], [0.9, 0.4], False),
        ([0.8, 0.6], [0.8, 0.6], False),  # as it is, unless something is gained
        ([NAN, 0.6], [NAN, 0.7], True),
        ([NAN], [NAN], False),
        ([], [], False),
    ],
)
def test_cross_validation_says_whether_it_helps(plain, processed, better):
    assert helps(plain, processed) is better


def test_scores_of_other_cases_are_refused():
    with pytest.raises(ValueError, match="plain, processed: 1 and 2 scores, must be of the same"):
        helps([0.1], [0.1, 0.2])
