import math

import numpy as np
import pytest

from raykb.metrics.anytime import area_under_learning_curve, log_time, nauc

TRUTH = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])


def test_nauc_is_one_of_perfect_zero_of_constant_and_minus_one_of_reversed_predictions():
    assert nauc(TRUTH * 1.0, TRUTH) == 1
    assert nauc(np.full((4, 2), 0.3), TRUTH) == 0
    assert nauc(1.0 - TRUTH, TRUTH) == -1


def test_a_tie_of_a_positive_and_a_negative_counts_half():
    scores = np.array([[0.9], [0.5], [0.5], [0.1]])
    assert nauc(scores, TRUTH[:, :1]) == pytest.approx(2 * (3.5 / 4) - 1)


def test_a_column_of_one_class_is_left_out_and_of_none_there_is_no_score():
    truth = np.concatenate([TRUTH, np.ones((4, 1))], axis=1)
    scores = np.concatenate([TRUTH, np.arange(4.0)[:, None]], axis=1)
    assert nauc(scores, truth) == 1
    assert math.isnan(nauc(np.zeros((4, 1)), np.ones((4, 1))))


@pytest.mark.parametrize(
    ("seconds", "factor"), [(10, 0.9494), (30, 0.8668), (60, 0.7723), (300, 0.4115), (600, 0.2124)]
)
def test_one_prediction_is_worth_its_score_times_the_share_that_is_left(seconds, factor):
    exact = 1 - math.log(1 + seconds / 60) / math.log(21)
    assert exact == pytest.approx(factor, abs=5e-5)
    found = area_under_learning_curve([seconds], [0.8], 1200)
    assert found == pytest.approx(0.8 * exact, abs=1e-12)


def test_a_constant_score_from_the_start_is_the_score_and_no_prediction_is_nothing():
    assert area_under_learning_curve([0, 5, 700], [0.6] * 3, 1200) == pytest.approx(0.6, abs=1e-12)
    assert area_under_learning_curve([], [], 1200) == 0
    assert log_time(1200, 1200) == 1


def test_a_worse_prediction_lowers_the_area_and_a_late_one_does_not_count():
    good = area_under_learning_curve([60], [0.9], 1200)
    assert area_under_learning_curve([60, 70], [0.9, 0.5], 1200) < good
    assert area_under_learning_curve([60, 1200.5], [0.9, 0.0], 1200) == good


def test_moments_that_fall_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match="none below"):
        area_under_learning_curve([5, 4], [0.1, 0.1], 1200)
    with pytest.raises(ValueError, match="must both be"):
        nauc(np.zeros((4, 2)), np.zeros((4, 3)))
