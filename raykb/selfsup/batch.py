"""What a step of self-supervised training sees; a method names the one that it needs."""

from typing import NamedTuple

from torch import Tensor


class ViewsBatch(NamedTuple):
    """Independent views of each image."""

    views: Tensor  # (N, V, C, H, W) float
    ids: Tensor  # (N,) int64


class MultiCropBatch(NamedTuple):
    """Two large crops of each image and some small ones."""

    views: Tensor  # (N, 2, C, H, W) float
    local: Tensor  # (N, L, C, h, w) float
    ids: Tensor  # (N,) int64


class PretextBatch(NamedTuple):
    """Images that something was done to, and what."""

    images: Tensor  # (N, C, H, W) float
    labels: Tensor  # (N,) int64
    ids: Tensor  # (N,) int64
