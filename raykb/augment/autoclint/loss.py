"""The losses of AutoCLINT, and what its logits say.

single label    cross entropy
multi-label     mean over (N, C) of w BCE;  w = 1 / clip(p, .1, .9) of positives,
                1 / clip(1 - p, .1, .9) of negatives, p the share of positives of the batch
"""

from torch import Tensor
from torch.nn import functional as F


def balance(labels: Tensor) -> Tensor:
    """Return the weight of each entry of labels (N, C) of 0 and 1."""
    share = labels.mean()
    positive, negative = (1 / part.clamp(0.1, 0.9) for part in (share, 1 - share))
    return labels * positive + (1 - labels) * negative


def classification_loss(logits: Tensor, labels: Tensor, multi_label: bool) -> Tensor:
    """Return the loss of logits (N, C) against labels (N, C) of 0 and 1."""
    if not multi_label:
        return F.cross_entropy(logits, labels.argmax(1))
    return F.binary_cross_entropy_with_logits(logits, labels, weight=balance(labels))


def probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """Return what is handed in, (N, C) in [0, 1]."""
    return logits.sigmoid() if multi_label else logits.softmax(1)
