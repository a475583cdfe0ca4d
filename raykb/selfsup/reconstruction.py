"""What methods that fill in have in common: losses over what was hidden, of all ranks."""

import torch
from torch import Tensor

from raykb.parts.gather import gather


def mean_where(errors: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of errors where a mask is set, over all images of all ranks.

    Args:
        errors: (N, ...) float.
        mask: (N, ...) bool, of axes that broadcast to those of the errors.
    """
    counted = mask.expand_as(errors).flatten(1)
    sums = torch.stack([(errors.flatten(1) * counted).sum(1), counted.sum(1).to(errors)], 1)
    total, count = gather(sums).sum(0)  # of all images, (2,)
    mean: Tensor = total / count
    return mean
