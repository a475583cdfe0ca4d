"""What a step of semi-supervised training sees."""

from typing import NamedTuple

from torch import Tensor


class SemiBatch(NamedTuple):
    """One rank's share of a step."""

    images: Tensor  # (B, C, H, W) float, weak views of labelled images
    labels: Tensor  # (B,) int64
    weak: Tensor  # (N, C, H, W) float, views of unlabelled images
    strong: Tensor  # (N, S, C, H, W) float, S other views of the same images
    ids: Tensor  # (N,) int64, which images these are
