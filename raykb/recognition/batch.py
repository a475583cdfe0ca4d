"""What classifiers see of a step whose images may be mixed."""

from typing import NamedTuple

from torch import Tensor


class SoftBatch(NamedTuple):
    """A rank's share of a step, with the share that each class has of an image."""

    images: Tensor  # (N, C, H, W) float
    targets: Tensor  # (N, classes) float, rows sum to 1
