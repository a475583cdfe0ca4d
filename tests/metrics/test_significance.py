import numpy as np
import pytest
from scipy.stats import kendalltau, wilcoxon

from raykb.metrics.significance import (
    beaten,
    differing_cases,
    holm_corrected,
    kendall_tau,
    p_values,
    shared_ranks,
)

ALL = np.arange(12)[None]


def test_each_ordered_pair_is_tested_over_each_draw():
    rng = np.random.default_rng(0)
    scores, draws = rng.normal(size=(2, 3, 12)), np.stack([ALL[0], rng.permutation(12)])
    p = p_values(scores, draws)
    assert p.shape == (2, 2, 3, 3)
    for cell, a, b in np.ndindex(2, 3, 3):
        theirs = 1.0
        if a != b:
            difference = scores[cell, a] - scores[cell, b]
            theirs = wilcoxon(difference, alternative="greater", method="exact").pvalue
        assert p[cell, :, a, b] == pytest.approx(theirs)  # a permutation is no other sample


def test_a_draw_takes_cases_as_often_as_it_names_them():
    scores = np.array([[[0.5, 0.25, 0.75], [0.25, 0.5, 0.0]]])  # differences 1/4, -1/4, 3/4
    p = p_values(scores, np.array([[2, 2, 2], [0, 1, 1]]))
    assert p[0, :, 0, 1] == pytest.approx([1 / 8, 7 / 8])
    assert p[0, :, 1, 0] == pytest.approx([1.0, 4 / 8])


def test_holm_steps_down_over_all_ordered_pairs():
    p = np.ones((3, 3))
    pairs = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
    for (a, b), value in zip(pairs, (0.01, 0.005, 0.99, 0.2, 0.999, 0.011), strict=True):
        p[a, b] = value
    made = holm_corrected(np.stack([p, np.ones((3, 3))]))
    expected = [0.05, 0.03, 1.0, 0.6, 1.0, 0.05]  # 5 x, 6 x, …, 3 x, …, 4 x 0.011 is below 0.05
    assert [made[0][pair] for pair in pairs] == pytest.approx(expected)
    assert made[0].diagonal().tolist() == [1.0, 1.0, 1.0]
    assert (made[1] == 1.0).all()
    scores = np.random.default_rng(0).normal(size=(1, 2, 12))
    np.testing.assert_array_equal(
        p_values(scores, ALL, holm=True), holm_corrected(p_values(scores, ALL))
    )


def test_p_that_is_alpha_is_significant_rounded_or_not():
    p = np.array([[1.0, 1 / 32 + 1e-15, 1 / 32], [0.04, 1.0, 1.0], [0.03, 0.031, 1.0]])
    assert beaten(p, 1 / 32).tolist() == [2, 0, 2]
    assert beaten(p, 0.05).tolist() == [2, 1, 2]


def test_cases_that_differ_are_neither_equal_nor_undefined():
    scores = np.array([[[0.5, 0.5, np.nan, 0.0], [0.5, 0.25, 1.0, 0.5]]])
    assert differing_cases(scores).tolist() == [[[0, 2], [2, 0]]]


def test_ties_share_the_best_rank():
    assert shared_ranks(np.array([[-2, -2, 0, -1], [0, 1, 2, 3]])).tolist() == [
        [1, 1, 4, 3],
        [1, 2, 3, 4],
    ]


def test_tau_is_the_one_of_scipy_with_ties():
    rng = np.random.default_rng(1)
    place, places = rng.integers(1, 4, 5), rng.integers(1, 4, (20, 5))
    theirs = [kendalltau(place, row).statistic for row in places]
    np.testing.assert_allclose(kendall_tau(place, places), theirs)
    assert np.isnan(kendall_tau(place, np.ones((1, 5), int))).all()
    assert np.isnan(kendall_tau(np.ones(5, int), places)).all()
