import itertools

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from raykb.metrics.signed_rank import EXACT, signed_rank


def naive(differences):
    """By all sign patterns of what is not 0."""
    kept = np.array([d for d in differences if d != 0 and not np.isnan(d)])
    if not len(kept):
        return 1.0, 1.0
    ranks = rankdata(np.abs(kept))
    patterns = np.array(list(itertools.product((-1, 1), repeat=len(kept)))) @ ranks
    found = np.sign(kept) @ ranks
    return np.mean(patterns >= found), np.mean(patterns <= found)


def test_all_positive_over_ten_cases_is_one_of_1024():
    above, below = signed_rank(np.arange(1.0, 11.0))
    assert above == pytest.approx(1 / 1024, rel=1e-10)
    assert below == pytest.approx(1.0)


@pytest.mark.parametrize("n", range(1, 11))
def test_p_is_the_share_of_sign_patterns_whatever_ties_zeros_and_gaps(n):
    rng = np.random.default_rng(n)
    rows = rng.integers(-3, 4, (20, n)) / 4
    rows = np.where(rng.random(rows.shape) < 0.1, np.nan, rows)
    rows[:5] = rng.normal(size=(5, n))
    made = np.stack(signed_rank(rows), axis=-1)
    np.testing.assert_allclose(made, [naive(row) for row in rows], atol=1e-12)


@pytest.mark.parametrize("n", [5, 20, EXACT])
def test_without_ties_it_is_the_exact_one_of_scipy(n):
    rows = np.random.default_rng(0).normal(0.2, size=(30, n))
    above, below = signed_rank(rows)
    for found, side in ((above, "greater"), (below, "less")):
        theirs = wilcoxon(rows, alternative=side, axis=-1, method="exact").pvalue
        np.testing.assert_allclose(found, theirs, atol=1e-12)


def test_beyond_it_is_the_normal_one_of_scipy_with_ties_and_zeros():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(-4, 6, EXACT + 10), rng.normal(size=EXACT + 10)])
    above, below = signed_rank(rows)
    for found, side in ((above, "greater"), (below, "less")):
        theirs = [wilcoxon(r, alternative=side, method="asymptotic").pvalue for r in rows]
        np.testing.assert_allclose(found, theirs, atol=1e-12)


@pytest.mark.parametrize("n", [0, 3, EXACT + 1])
def test_without_a_difference_nothing_is_known(n):
    np.testing.assert_allclose(signed_rank(np.zeros((2, n))), np.ones((2, 2)))


def test_axes_before_the_last_are_kept_and_blocks_do_not_matter():
    rows = np.random.default_rng(2).normal(size=(5, 40, EXACT))  # more rows than a block has
    above, _ = signed_rank(rows)
    assert above.shape == (5, 40)
    assert above[3, 7] == pytest.approx(float(signed_rank(rows[3, 7])[0]), abs=1e-13)


def test_sides_swap_with_the_sign():
    rows = np.random.default_rng(3).integers(-2, 4, (9, 12)).astype(float)
    above, below = signed_rank(rows)
    swapped = signed_rank(-rows)
    np.testing.assert_allclose(above, swapped[1], atol=1e-13)
    np.testing.assert_allclose(below, swapped[0], atol=1e-13)
