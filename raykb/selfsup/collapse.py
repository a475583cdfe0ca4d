"""Whether features still differ: a network that says the same of all images has no loss to fear."""

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Return the standard deviation of normalised features, the mean of that of each dimension.

    Of directions spread evenly it is 1 / sqrt(d), of a collapsed network 0 (Chen, He, "Exploring
    simple Siamese representation learning", CVPR 2021, section 4.1).

    Args:
        features: (N, d), this rank's share; counted are those of all ranks.
    """
    directions = F.normalize(gather(at_least_float32(features)), dim=1)
    return directions.std(0, correction=0).mean()
