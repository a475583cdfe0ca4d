import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from shapes import ball, cube

from raykb.metrics.overlap import by_label, dice, dice_by_label, foreground_mean, label_means

LABELS = ("background", "liver", "cancer", "vessel")
EMPTY = np.zeros((24, 24, 24), bool)


@pytest.mark.parametrize("shift", range(9))
def test_cubes_shifted_by_k_overlap_by_what_is_left(shift):
    assert dice(cube(8, 8, 8, 8), cube(8, 8 + shift, 8, 8)) == (8 - shift) / 8


def test_a_cube_in_a_concentric_one():
    assert dice(cube(8, 8, 8, 8), cube(10, 7, 7, 7)) == 1024 / 1512


@pytest.mark.parametrize(
    ("shift", "digital"), [(1, 0.92396), (2, 0.85080), (4, 0.70736), (8, 0.43392)]
)
def test_digital_balls_are_near_the_closed_form(shift, digital):
    made = dice(ball(10, 14, 20, 20), ball(10, 14 + shift, 20, 20))
    u = shift / 20
    assert made == pytest.approx(digital, abs=5e-6)
    assert made == pytest.approx(1 - 1.5 * u + 0.5 * u**3, abs=0.005)


def test_dice_is_undefined_of_two_empty_masks_and_0_with_one():
    assert math.isnan(dice(EMPTY, EMPTY))
    assert dice(EMPTY, cube(1, 0, 0, 0)) == dice(cube(1, 0, 0, 0), EMPTY) == 0.0


@pytest.mark.parametrize("shape", [(), (7,), (5, 6), (2, 3, 4, 5)])
def test_dice_of_any_dimension_and_of_either_library(shape):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, *shape)) < 0.8
    pairs = list(zip(np.ravel(a), np.ravel(b), strict=True))
    expected = 2 * sum(x and y for x, y in pairs) / sum(int(x) + int(y) for x, y in pairs)
    assert dice(a, b) == dice(torch.tensor(a), torch.tensor(b)) == dice(a, torch.tensor(b))
    assert dice(a, b) == pytest.approx(expected)


def test_dice_is_the_one_of_monai():
    rng = np.random.default_rng(1)
    a, b = torch.from_numpy(rng.random((2, 4, 1, 6, 7, 8)) < 0.3)
    theirs = compute_dice(a.float(), b.float())[:, 0]
    assert [dice(x, y) for x, y in zip(a, b, strict=True)] == pytest.approx(theirs.tolist())


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.ones(3, bool), np.ones((3, 1), bool), r"prediction, reference: \(3,\) and \(3, 1\)"),
        (np.ones(3), np.ones(3, bool), "prediction: float64, must be booleans"),
        (np.ones(3, bool), torch.ones(3, dtype=torch.uint8), "reference: uint8, .* reference == 1"),
    ],
)
def test_what_is_no_pair_of_masks_is_refused(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        dice(prediction, reference)


def test_label_maps_have_a_dice_for_each_name_but_the_background():
    prediction, reference = np.array([[0, 1, 1, 2]]), np.array([[1, 1, 0, 0]])
    made = dice_by_label(prediction, torch.tensor(reference), LABELS)
    assert list(made) == ["liver", "cancer", "vessel"]
    assert (made["liver"], made["cancer"]) == (0.5, 0.0)
    assert math.isnan(made["vessel"])


def test_any_score_goes_by_label():
    made = by_label(
        lambda predicted, expected: float(predicted.sum() - expected.sum()),
        np.array([1, 1, 3], np.uint8),
        np.array([2, 1, 3], np.uint8),
        LABELS,
    )
    assert made == {"liver": 1.0, "cancer": -1.0, "vessel": 0.0}


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([0, 4], [0, 1], r"prediction: label 4, must be in 0\.\.3"),
        ([0, 3], [0, -1], r"reference: label -1, must be in 0\.\.3"),
        ([0.0, 1.0], [0, 1], "prediction: float64, must be integers"),
        ([0, 1], [0], r"prediction, reference: \(2,\) and \(1,\), must have one shape"),
    ],
)
def test_what_is_no_pair_of_label_maps_is_refused(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        dice_by_label(np.array(prediction), np.array(reference), LABELS)


def test_the_foreground_mean_is_over_labels_of_means_over_cases():
    nan = float("nan")
    cases = [
        {"liver": 1.0, "cancer": nan, "vessel": nan},
        {"liver": 0.5, "cancer": 0.25, "vessel": nan},
        {"liver": 0.0, "cancer": nan, "vessel": nan},
    ]
    means = label_means(cases)
    assert (means["liver"], means["cancer"]) == (0.5, 0.25)
    assert math.isnan(means["vessel"])
    assert foreground_mean(cases) == 0.375  # and not 0.4375, the mean of all figures
    assert math.isnan(foreground_mean([]))


def test_a_case_may_lack_a_label():
    assert label_means([{"liver": 1.0}, {"liver": 0.0, "cancer": 0.5}]) == {
        "liver": 0.5,
        "cancer": 0.5,
    }
