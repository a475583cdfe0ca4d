"""Intervals of what is averaged over cases: cases are drawn again, with all of their regions.

    score      mean over regions of the mean over cases; NaN counts in neither
    interval   percentiles of the score over draws of as many cases, with replacement

Efron, Tibshirani, "An introduction to the bootstrap", 1993, chapter 13 (percentile method).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from raykb.metrics.overlap import foreground_mean


class CaseMean(NamedTuple):
    """A score over cases; NaN where nothing is defined, and no interval of a single case."""

    mean: float
    low: float
    high: float


def case_mean(
    cases: Sequence[Mapping[str, float]],
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> CaseMean:
    """Return the mean over regions of their means over cases, and its interval over cases.

    Args:
        cases: scores by region, one mapping a case; all have the same regions.
        confidence: of the interval, in (0, 1).
        draws: number of them.
        seed: of the draws.
    """
    mean = foreground_mean(cases)
    if len(cases) < 2 or math.isnan(mean):
        return CaseMean(mean, math.nan, math.nan)
    scores = np.array([list(case.values()) for case in cases], np.float64)  # (N, R)
    drawn = np.random.default_rng(seed).integers(0, len(scores), (draws, len(scores)))
    means = nan_mean(nan_mean(scores[drawn], 1), 1)  # (draws,), cases first
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(means, (tail, 1 - tail)).tolist()
    return CaseMean(mean, low, high)


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean along an axis of what is no NaN; NaN where nothing else is."""
    known = ~np.isnan(values)
    counts = known.sum(axis=axis)
    sums = np.where(known, values, 0.0).sum(axis=axis)
    means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)
    return means
