"""What a step of self-supervised training sees; a method names one of these."""

from typing import NamedTuple

from torch import Tensor


class ViewsBatch(NamedTuple):
    """A rank's share of a step: independent views of each image."""

    views: Tensor  # (N, V, C, H, W) float
    ids: Tensor  # (N,) int64


class MultiCropBatch(NamedTuple):
    """Two views of each image, and smaller crops of it."""

    views: Tensor  # (N, 2, C, H, W) float
    local: Tensor  # (N, L, C, h, w) float
    ids: Tensor  # (N,) int64


class MaskedBatch(NamedTuple):
    """Images of whose patches some are to be hidden."""

    images: Tensor  # (N, C, H, W) float
    mask: Tensor  # (N, T) bool, True where a patch is hidden
    ids: Tensor  # (N,) int64


class CorruptedBatch(NamedTuple):
    """Images, and the same with some pixels replaced."""

    images: Tensor  # (N, C, H, W) float
    corrupted: Tensor  # (N, C, H, W) float
    mask: Tensor  # (N, 1, H, W) bool, True where a pixel was replaced
    alien: Tensor  # (N,) bool, True where it is to be replaced by another image's pixel
    ids: Tensor  # (N,) int64


class BoxesBatch(NamedTuple):
    """Two views of each image, and where the same regions lie in both."""

    views: Tensor  # (N, 2, C, H, W) float
    boxes: Tensor  # (N, 2, K, 4) float: left, top, right, bottom, in pixels of each view
    valid: Tensor  # (N,) bool, False where the two views have no region in common
    ids: Tensor  # (N,) int64


class PretextBatch(NamedTuple):
    """Images that were changed, and how."""

    images: Tensor  # (N, C, H, W) float
    labels: Tensor  # (N,) int64
    ids: Tensor  # (N,) int64
