"""How deep a U-Net is along each axis, and what its feature maps take (nnU-Net's rules).

An axis is halved while it is long enough, and not before its voxels are about as small as those of
the other axes; until then kernels do not reach along it. So the thick slices of a volume with
5 x 1 x 1 mm stay apart for two stages. Rules by number: :mod:`raykb.segmentation.nnunet`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONVOLUTIONS = 2  # of each stage
MIN_EDGE = 4  # voxels that a halved axis has at least

Ints = tuple[int, ...]


class Topology(NamedTuple):
    """A U-Net's shape; entry s of the stages is of the s-th from the finest."""

    patch_size: Ints  # (d,), whose axes can be halved as often as the strides say
    strides: tuple[Ints, ...]  # (stages, d), from the stage before; the first is of ones
    kernel_sizes: tuple[Ints, ...]  # (stages, d)

    @property
    def divisor(self) -> Ints:
        """Voxels of the input to one of the coarsest stage, along each axis."""
        return tuple(int(steps) for steps in np.prod(self.strides, axis=0))


def topology(spacing_mm: Sequence[float], size: Sequence[float]) -> Topology:
    """Return strides and kernels for a patch, and the patch padded to what they divide (rule 4).

    Args:
        spacing_mm: (d,) of the voxels.
        size: (d,) of the patch, which may be a median and so no whole number.
    """
    spacing, left = np.array(spacing_mm, np.float64), np.array(size, np.float64)
    kernel = np.ones(len(spacing), np.int64)
    strides, kernels = [(1,) * len(spacing)], []
    while (halved := _halved(spacing, left)).any():
        kernel[spacing < 2 * spacing.min()] = 3
        kernels.append(tuple(kernel.tolist()))
        strides.append(tuple(np.where(halved, 2, 1).tolist()))
        spacing[halved] *= 2
        left[halved] = np.ceil(left[halved] / 2)
    kernels.append((3,) * len(spacing))  # the bottleneck
    divisor = np.prod(strides, axis=0)
    padded = (np.ceil(np.array(size) / divisor) * divisor).astype(np.int64)
    return Topology(tuple(padded.tolist()), tuple(strides), tuple(kernels))


def _halved(spacing: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return (d,) which axes are halved next; none at the end."""
    long: np.ndarray = left >= 2 * MIN_EDGE
    if not long.any():
        return long
    halved: np.ndarray = long & (spacing < 2 * spacing[long].min())
    if halved.sum() == 1 and left[halved][0] < 3 * MIN_EDGE:
        return np.zeros_like(halved)
    return halved


def smaller(
    found: Topology, spacing_mm: Sequence[float], median_shape: Sequence[float]
) -> Topology:
    """Return the next smaller patch: shorter where it covers most of the median shape (rule 6).

    The axis loses what the coarsest stage of the shorter patch divides it by, so that no size is
    passed over: of 256 it is 32, not the 64 that divides 256. One of which nothing would be left
    stays.

    Raises:
        ValueError: that is so of all.
    """
    sizes = zip(found.patch_size, found.divisor, strict=True)
    axes = [axis for axis, (voxels, divisor) in enumerate(sizes) if voxels > divisor]
    if not axes:
        raise ValueError(f"patch_size: {found.patch_size}, cannot be made smaller")
    axis = max(axes, key=lambda axis: (found.patch_size[axis] / median_shape[axis], axis))
    tried, shorter = list(found.patch_size), list(found.patch_size)
    tried[axis] -= found.divisor[axis]
    shorter[axis] -= topology(spacing_mm, tried).divisor[axis]
    return topology(spacing_mm, shorter)


def widths(stages: int, most: int, width: int = 32) -> Ints:
    """Return the channels of each stage: twice as many at each coarser one, up to ``most``."""
    return tuple(min(width * 2**stage, most) for stage in range(stages))


def feature_map_size(found: Topology, channels: Sequence[int], labels: int) -> int:
    """Return the numbers that all convolutions put out for one patch: the estimate of memory.

    Encoder and decoder have two convolutions at each stage, the decoder an upsampling before them
    and none at the coarsest; the logits are those of the finest.

    Args:
        found: the patch and its strides.
        channels: of each stage.
        labels: of the logits.
    """
    shrunk = np.cumprod(found.strides, axis=0)  # (stages, d)
    voxels = np.prod(np.array(found.patch_size) // shrunk, axis=1).tolist()
    encoder = sum(CONVOLUTIONS * c * v for c, v in zip(channels, voxels, strict=True))
    finer = zip(channels[:-1], voxels[:-1], strict=True)
    decoder = sum((CONVOLUTIONS + 1) * c * v for c, v in finer)
    return int(encoder + decoder + labels * voxels[0])
