"""What predictions at any moment are worth: the scores of the AutoDL challenge.

Liu et al., "Winning solutions and post-challenge analyses of the ChaLearn AutoDL challenge 2019",
TPAMI 2021, arXiv:2201.03801.

    NAUC    = 2 mean_c AUC_c - 1                        over the columns that have both classes
    AUC_c   = (R_c - p (p + 1) / 2) / (p n)             R_c: sum of the ranks of the positives
    t~(t)   = ln(1 + t / t0) / ln(1 + T / t0)
    ALC     = sum_i s_i (t~_{i+1} - t~_i)               t~ of the one after the last is 1

Symbols:
    p, n    positives and negatives of a column; ties share their ranks
    s_i     score of prediction i, handed in at t_i seconds; 0 before the first
    T       budget in seconds, 1200 in the challenge
    t0      seconds until which time counts about linearly, 60 in the challenge

A prediction counts from its moment until the next one, so one of score s at t alone is worth
``s (1 - t~(t))``. One that comes after T counts nothing.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from raykb.later import Later

pandas = Later("pandas")


def nauc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the normalised area under the ROC curve: 1 perfect, 0 by chance, -1 reversed.

    Args:
        scores: (N, C), higher where the class is more likely.
        truth: (N, C) of 0 and 1; several may be 1 in a row.

    Returns:
        The mean over classes that some have and others have not; NaN if there is none.

    Raises:
        ValueError: the shapes differ, or a score is not finite.
    """
    if scores.shape != truth.shape or scores.ndim != 2 or not np.isfinite(scores).all():
        raise ValueError(
            f"scores, truth: {scores.shape} and {truth.shape}, must both be (N, C), and scores "
            "finite"
        )
    positives = truth.sum(axis=0).astype(float)  # (C,)
    pairs = positives * (len(truth) - positives)
    both = pairs > 0
    if not both.any():
        return math.nan
    ranks = pandas.DataFrame(scores[:, both]).rank().to_numpy()  # ties have their mean
    sums = (ranks * truth[:, both]).sum(axis=0)
    own = positives[both]
    areas = (sums - own * (own + 1) / 2) / pairs[both]
    return float(2 * areas.mean() - 1)


def log_time(seconds: float, budget_s: float, scale_s: float = 60.0) -> float:
    """Return t~ of ``seconds``: 0 at the start, 1 when the budget is spent.

    Args:
        seconds: t, at least 0.
        budget_s: T, above 0.
        scale_s: t0, above 0.
    """
    if seconds < 0 or budget_s <= 0 or scale_s <= 0:
        raise ValueError(
            f"seconds={seconds}, budget_s={budget_s}, scale_s={scale_s}: must be at least 0, and "
            "above 0 the other two"
        )
    return math.log1p(seconds / scale_s) / math.log1p(budget_s / scale_s)


def area_under_learning_curve(
    seconds: Sequence[float], scores: Sequence[float], budget_s: float, scale_s: float = 60.0
) -> float:
    """Return ALC of predictions.

    Args:
        seconds: (n,) of each prediction since the start; they do not fall.
        scores: (n,) what each is worth.
        budget_s: T; what came later is left out.
        scale_s: t0.

    Raises:
        ValueError: there is not a score for each, or the moments fall.
    """
    if len(seconds) != len(scores) or any(b < a for a, b in itertools.pairwise(seconds)):
        raise ValueError(
            f"seconds: {list(seconds)} for {len(scores)} scores, must be one for each, none below "
            "the one before"
        )
    moments = [log_time(each, budget_s, scale_s) for each in seconds if each <= budget_s]
    ends = [*moments[1:], 1.0]
    steps = zip(scores, moments, ends, strict=False)
    return sum((score * (end - start) for score, start, end in steps), 0.0)
