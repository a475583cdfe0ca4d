"""How well a score tells two kinds of examples apart."""

import torch
from torch import Tensor


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return the area under the ROC curve: how often a score inside is above one outside.

    It is over all pairs, and a tie counts half.

    Args:
        inside: (N,) scores of those that should be high.
        outside: (M,) scores of the others.

    Raises:
        ValueError: there are none of a kind, or a score is NaN.
    """
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.ndim != 1 or not len(scores) or scores.isnan().any():
            raise ValueError(
                f"{name}: {tuple(scores.shape)} scores, {int(scores.isnan().sum())} of them NaN; "
                "must be at least one in one axis, and no NaN"
            )
    ordered = outside.sort().values
    below, not_above = (torch.searchsorted(ordered, inside, right=ties) for ties in (False, True))
    return float((below + not_above).double().mean()) / (2 * len(outside))
