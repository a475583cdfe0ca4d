import math

import pytest

from raykb.metrics.intervals import case_mean


def cases(*values, region="organ"):
    return [{region: value} for value in values]


def test_the_score_is_the_mean_over_regions_of_means_over_cases_that_have_them():
    found = case_mean([{"a": 1.0, "b": 0.2}, {"a": 0.0, "b": math.nan}])
    assert found.mean == pytest.approx((0.5 + 0.2) / 2)


def test_the_interval_of_many_cases_is_that_of_their_mean():
    found = case_mean(cases(*[0.0, 1.0] * 50))
    half = 1.96 * 0.5 / 10  # of the normal distribution
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.5 - half, abs=0.02)
    assert found.high == pytest.approx(0.5 + half, abs=0.02)


def test_equal_cases_leave_no_doubt():
    assert case_mean(cases(*[0.25] * 5)) == (0.25, 0.25, 0.25)


def test_a_single_case_has_no_interval():
    found = case_mean(cases(0.5))
    assert found.mean == 0.5
    assert math.isnan(found.low)


@pytest.mark.parametrize("none", [[], cases(math.nan, math.nan)])
def test_where_nothing_is_defined_there_is_no_score(none):
    assert all(math.isnan(value) for value in case_mean(none))


def test_draws_are_those_of_the_seed():
    scores = cases(0.1, 0.9, 0.4, 0.6)
    assert case_mean(scores, seed=1) == case_mean(scores, seed=1)
    assert case_mean(scores, seed=1, draws=50) != case_mean(scores, seed=2, draws=50)
