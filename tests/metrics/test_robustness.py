"""The mean corruption error against figures worked by hand, and what it refuses."""

import math

import pytest

from raykb.data.corruptions import CORRUPTIONS
from raykb.metrics.robustness import ALEXNET, mean_corruption_error


def test_alexnet_has_an_error_of_one_in_its_own_units():
    errors = {name: [mean - 0.05, mean, mean + 0.05] for name, mean in ALEXNET.items()}
    assert mean_corruption_error(errors) == pytest.approx(1.0)


def test_it_is_a_mean_of_ratios_of_sums_and_not_a_ratio_of_means():
    errors = {"fog": [0.1, 0.3], "snow": [0.4, 0.4, 0.7]}
    found = mean_corruption_error(errors, {"fog": 0.8, "snow": 0.5})
    assert found == pytest.approx((0.2 / 0.8 + 0.5 / 0.5) / 2)
    assert mean_corruption_error(errors, None) == pytest.approx((0.2 + 0.5) / 2)


def test_alexnet_is_known_for_the_fifteen_corruptions_and_errs_most_on_impulses():
    assert list(ALEXNET) == list(CORRUPTIONS)
    assert max(ALEXNET, key=ALEXNET.get) == "impulse_noise"
    assert sum(ALEXNET.values()) == pytest.approx(11.834896)


@pytest.mark.parametrize(
    ("errors", "baseline", "told"),
    [
        ({}, None, "errors: none, must be a row for each corruption"),
        ({"fog": [0.1]}, {"fog": 0.5, "snow": 0.5}, "errors: no snow, must have all"),
        ({"fog": [0.1], "rain": [0.2]}, {"fog": 0.5}, "errors: rain unknown to the baseline"),
        ({"fog": []}, None, r"errors of fog: \[\], must be shares"),
        ({"fog": [0.2, 12.0]}, None, r"errors of fog: \[0.2, 12.0\], must be shares in \[0, 1\]"),
        ({"fog": [math.nan]}, None, r"errors of fog: \[nan\], must be shares"),
        ({"fog": [0.1]}, {"fog": 0.0}, "baseline of fog: 0.0, must be above 0"),
    ],
)
def test_what_has_no_mean_is_refused(errors, baseline, told):
    with pytest.raises(ValueError, match=told):
        mean_corruption_error(errors, baseline)
