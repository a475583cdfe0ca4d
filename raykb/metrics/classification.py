"""How good a classifier is, and whether one is better than another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return the share of rows whose label is among the ``k`` largest logits.

    Args:
        logits: (N, C).
        labels: (N,) integers.
        k: in 1..C.
    """
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k={k}: must be in 1..{logits.shape[1]}, the number of classes")
    best = logits.topk(k, dim=1).indices  # (N, k)
    return (best == labels[:, None]).any(dim=1).double().mean().item()


def confusion_matrix(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return (classes, classes) int64: how often label i (row) was taken for j (column).

    Args:
        predictions: (N,) classes.
        labels: (N,) classes.
        classes: their number.

    Raises:
        ValueError: the numbers are not as many, or one is no class.
    """
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions, labels: {tuple(predictions.shape)} and {tuple(labels.shape)}, must both "
            "be (N,)"
        )
    for name, numbers in (("predictions", predictions), ("labels", labels)):
        strange = numbers[(numbers < 0) | (numbers >= classes)]
        if len(strange):
            raise ValueError(f"{name}: {strange[0].item()}, must be in 0..{classes - 1}")
    pairs = labels.long() * classes + predictions.long()
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_accuracies(confusion: Tensor) -> Tensor:
    """Return (C,) float64: the share of each class that was recognised; NaN without members."""
    return confusion.diagonal().double() / confusion.sum(dim=1)


class PairedDifference(NamedTuple):
    """Mean of paired differences, their standard deviation, and the interval of the mean."""

    mean: float
    sd: float
    low: float
    high: float


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95
) -> PairedDifference:
    """Compare two methods over the same seeds: statistics of ``a[i] - b[i]``.

    The interval is Student's, mean ± t sd / sqrt(n) with n - 1 degrees of freedom. The standard
    deviation has n - 1 in its denominator too.

    Args:
        a: (n,) scores of one method, n at least 2.
        b: (n,) scores of the other, seed by seed.
        confidence: of the interval, in (0, 1).
    """
    if len(a) != len(b) or len(a) < 2 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"{len(a)} and {len(b)} scores, confidence={confidence}: must be equally many, at "
            "least 2, and confidence between 0 and 1 exclusive; run both over the same seeds"
        )
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean, sd = float(differences.mean()), float(differences.std(ddof=1))
    half = float(stdtrit(len(a) - 1, (1.0 + confidence) / 2.0)) * sd / len(a) ** 0.5
    return PairedDifference(mean, sd, mean - half, mean + half)
