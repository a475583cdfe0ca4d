"""Which methods beat which on the same cases, and their ranks, as arrays of plain numbers.

Of M methods and n cases; draws are positions of cases, so that a bootstrap is one more axis.
"""

from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from raykb.metrics.signed_rank import Floats, Integers, signed_rank

_ROUNDING = 1e-9  # relative, of p against alpha


def p_values(scores: Floats, draws: Integers, *, holm: bool = False) -> Floats:
    """Return p of "a is better than b", (cells, draws, M, M) by a and b; 1 if they are one.

    Args:
        scores: (cells, M, n).
        draws: (draws, n) positions of cases.
        holm: correct them by :func:`holm_corrected`.
    """
    cells, methods, _ = scores.shape
    p = np.ones((cells, len(draws), methods, methods))
    for a, b in combinations(range(methods), 2):
        differences = (scores[:, a] - scores[:, b])[:, draws]  # (cells, draws, n)
        p[..., a, b], p[..., b, a] = signed_rank(differences)
    return holm_corrected(p) if holm else p


def holm_corrected(p: Floats) -> Floats:
    """Correct p of all ordered pairs, (…, M, M) without the diagonal, by Holm's step-down.

    The k-th smallest of m is multiplied by m - k + 1, and is no smaller than the one before.
    """
    pairs = ~np.eye(p.shape[-1], dtype=bool)
    family = p[..., pairs]  # (…, m)
    order = family.argsort(axis=-1, kind="stable")
    steps = np.take_along_axis(family, order, -1) * np.arange(family.shape[-1], 0, -1)
    np.put_along_axis(family, order, np.maximum.accumulate(steps, axis=-1).clip(max=1.0), -1)
    corrected = np.ones_like(p)
    corrected[..., pairs] = family
    return corrected


def differing_cases(scores: Floats) -> Integers:
    """Return how many cases two methods differ in: (cells, M, M)."""
    apart = scores[:, :, None] - scores[:, None]
    counts: Integers = np.count_nonzero(np.nan_to_num(apart), axis=-1)
    return counts


def beaten(p: Floats, alpha: float) -> Integers:
    """Return how many others each method is significantly better than: (…, M)."""
    counts: Integers = np.count_nonzero(p <= alpha * (1.0 + _ROUNDING), axis=-1)
    return counts


def shared_ranks(values: npt.NDArray[np.number]) -> Integers:
    """Return ranks along the last axis, from 1 for the smallest; ties share the best: 1, 1, 3."""
    ranks: Integers = rankdata(values, method="min", axis=-1).astype(np.int64)
    return ranks


def kendall_tau(place: Integers, places: Integers) -> Floats:
    """Return Kendall's tau-b of each row of places with one order; NaN where all of either tie.

    Args:
        place: (M,).
        places: (rows, M).
    """
    a, b = np.triu_indices(len(place), k=1)
    ours = np.sign(place[a] - place[b])  # (pairs,)
    theirs = np.sign(places[:, a] - places[:, b])  # (rows, pairs)
    untied = np.sqrt((ours**2).sum() * (theirs**2).sum(axis=1))
    tau: Floats = np.full(len(places), np.nan)
    np.divide(theirs @ ours, untied, out=tau, where=untied > 0.0)
    return tau
