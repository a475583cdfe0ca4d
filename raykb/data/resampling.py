"""Volumes on another grid: cubic splines for images, linear ones for each label (nnU-Net's).

Voxels are boxes whose outer borders stay where they are, so the first voxel of the new grid need
not have its middle where the old one had. Thick slices, more than three times as far apart as
voxels within them, are no neighbours: along that axis each voxel is that of the nearest slice.

Departure: a voxel has the label with the largest share; nnU-Net has the background where none has
half.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped]

_ANISOTROPIC = 3.0

Shape = tuple[int, ...]


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> Shape:
    """Return how many voxels of the target's spacing cover as much along each axis, at least 1."""
    exact = np.array(shape) * (np.array(spacing_mm) / np.array(target_mm))
    return tuple(int(length) for length in np.maximum(np.round(exact), 1))


def thick_axis(spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """Return the axis of slices that are no neighbours, before or after; None if there is none."""
    for spacing in (np.array(spacing_mm), np.array(target_mm)):
        if spacing.max() > _ANISOTROPIC * spacing.min():
            thick = np.flatnonzero(spacing == spacing.max())
            return int(thick[0]) if len(thick) == 1 else None
    return None


def resample_image(
    image: np.ndarray, shape: Sequence[int], *, thick: int | None = None, order: int = 3
) -> np.ndarray:
    """Return (C, …) of the wanted shape as float32.

    Args:
        image: (C, …).
        shape: of what is returned, without channels.
        thick: axis along which the nearest slice is taken, as :func:`thick_axis` says.
        order: of the splines along the other axes: 3 for images, 1 for probabilities.
    """
    resampled = np.empty((len(image), *shape), np.float32)
    for channel, out in zip(image, resampled, strict=True):
        out[...] = _zoomed(channel.astype(np.float32), shape, thick, order)
    return resampled


def resample_label(
    label: np.ndarray, shape: Sequence[int], *, thick: int | None = None
) -> np.ndarray:
    """Return a label map of the wanted shape, and of the type that it had.

    Each label is resampled by itself, for between 1 and 3 there is no 2.

    Args:
        label: (…), integers.
        shape: of what is returned.
        thick: as for :func:`resample_image`.
    """
    resampled, share = np.zeros(shape, label.dtype), np.zeros(shape, np.float32)
    for number in np.unique(label):
        own = _zoomed((label == number).astype(np.float32), shape, thick, order=1)
        more = own > share
        resampled[more], share[more] = number, own[more]
    return resampled


def _zoomed(values: np.ndarray, shape: Sequence[int], thick: int | None, order: int) -> np.ndarray:
    """Return values on another grid, the axis of thick slices last and by the nearest."""
    within = [old if axis == thick else new for axis, (old, new) in _axes(values, shape)]
    return _spline(_spline(values, within, order), shape, order=0)


def _axes(values: np.ndarray, shape: Sequence[int]) -> enumerate[tuple[int, int]]:
    return enumerate(zip(values.shape, shape, strict=True))


def _spline(values: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    if values.shape == tuple(shape):
        return values
    factors = [new / old for _, (old, new) in _axes(values, shape)]
    zoomed: np.ndarray = ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
    return zoomed
