"""What patches of volumes are augmented by, each row of a batch with numbers of its own.

    images    (N, C, Z, Y, X) float32, on any device
    labels    (N, Z, Y, X) int64
    factor    (N, C), of each channel; else (N,), of each patch

The operations are those of nnU-Net (Isensee et al., Nature Methods 18, 2021; batchgeneratorsv2).

Departures: rotations are of space, in mm, where nnU-Net's are of voxels, which shears what lies in
thick slices; labels are those of the nearest voxel; a blur leaves off what is beyond four sigma of
the widest one, and repeats the border.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.data.keyed_numbers import keyed_normals

_TINY = 1e-7


def rotations(degrees: Tensor) -> Tensor:
    """Return matrices (N, 3, 3) that turn (z, y, x) about Z, Y and X by ``degrees`` (N, 3)."""
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    turned = torch.eye(3, dtype=degrees.dtype, device=degrees.device).expand(len(degrees), 3, 3)
    for axis, (one, other) in enumerate(((1, 2), (0, 2), (0, 1))):
        own = torch.eye(3, dtype=degrees.dtype, device=degrees.device).repeat(len(degrees), 1, 1)
        own[:, one, one] = own[:, other, other] = cos[:, axis]
        own[:, one, other], own[:, other, one] = -sin[:, axis], sin[:, axis]
        turned = turned @ own
    return turned


def moved(
    images: Tensor,
    labels: Tensor,
    matrices: Tensor,
    spacing_mm: Sequence[float],
    size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return what is seen through matrices, about the middle of patches; zeros lie outside.

    Args:
        images: linear between voxels.
        labels: of the nearest voxel.
        matrices: (N, D, D), from where a voxel is put to where it is read, in mm along the last D
            axes, which are 3 or 2; with 2 of them no slice is mixed with another.
        spacing_mm: along Z, Y and X.
        size: Z, Y and X of what is returned.
    """
    axes = matrices.shape[1]
    space = labels.shape[-axes:]
    mm = torch.tensor(spacing_mm[-axes:], dtype=matrices.dtype, device=matrices.device)
    wanted, given = (mm * matrices.new_tensor(shape[-axes:]) / 2 for shape in (size, space))
    # torch has the axes from X on, and borders at -1 and 1
    theta = F.pad((matrices * wanted / given[:, None]).flip(1, 2), (0, 1))  # (N, D, D + 1)
    grid = F.affine_grid(theta, [len(theta), 1, *size[-axes:]], align_corners=False)
    stacks = images.reshape(len(images), -1, *space), labels.reshape(len(labels), -1, *space)
    seen = F.grid_sample(stacks[0], grid, "bilinear", "zeros", align_corners=False)
    near = F.grid_sample(stacks[1].to(seen), grid, "nearest", "zeros", align_corners=False)
    return seen.view(*images.shape[:2], *size), near.view(len(labels), *size).to(labels)


def mirrored(
    images: Tensor, labels: Tensor, turned: Tensor, *, axes: Sequence[int] = (0, 1, 2)
) -> tuple[Tensor, Tensor]:
    """Return patches mirrored along those of Z, Y and X where ``turned`` (N, 3) is."""
    for axis in axes:
        along = turned[:, axis, None, None, None]
        images = torch.where(along[:, None], images.flip(2 + axis), images)
        labels = torch.where(along, labels.flip(1 + axis), labels)
    return images, labels


# ---------------------------------------------------------------------- intensities


def noisy(images: Tensor, variance: Tensor, keys: Tensor) -> Tensor:
    """Return images under Gaussian noise of ``variance`` (N,), the draws of keys (N,)."""
    normals = keyed_normals(keys, images[0].numel()).view_as(images)
    return images + variance.sqrt()[:, None, None, None, None] * normals


def blurred(images: Tensor, sigma: Tensor, *, widest: float) -> Tensor:
    """Return images under a Gaussian of ``sigma`` (N, C) voxels, of which none is above widest."""
    reach = math.ceil(4 * widest)
    away = torch.arange(-reach, reach + 1, device=images.device)
    weights = (-0.5 * (away / sigma[..., None]) ** 2).exp()  # (N, C, 2 reach + 1)
    weights = weights / weights.sum(2, keepdim=True)
    for axis in (2, 3, 4):
        length = images.shape[axis]
        border = [0, 0, 0, 0, 0, 0]
        border[8 - 2 * axis] = border[9 - 2 * axis] = reach  # F.pad begins at the last axis
        wide = F.pad(images, border, "replicate")
        pieces = (wide.narrow(axis, n, length) for n in range(2 * reach + 1))
        images = sum(
            (spread(weights[..., n]) * piece for n, piece in enumerate(pieces)),
            start=torch.zeros_like(images),
        )
    return images


def brightened(images: Tensor, factor: Tensor) -> Tensor:
    """Return images times a factor (N, C)."""
    return images * spread(factor)


def contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """Return channels whose distance from their mean is times a factor (N, C), in their range."""
    mean = images.mean((2, 3, 4), keepdim=True)
    low, high = images.amin((2, 3, 4), keepdim=True), images.amax((2, 3, 4), keepdim=True)
    return ((images - mean) * spread(factor) + mean).clamp(low, high)


def coarsened(images: Tensor, share: Tensor, *, axes: Sequence[int] = (0, 1, 2)) -> Tensor:
    """Return channels as from a scan of fewer voxels: the nearest there, and linear between them.

    Args:
        images: (N, C, Z, Y, X).
        share: (N, C) in (0, 1], of the voxels along each axis.
        axes: along which of Z, Y and X.
    """
    for axis in axes:
        length = images.shape[2 + axis]
        fewer = (share * length).round().clamp_min(1)[..., None]  # (N, C, 1)
        place = (torch.arange(length, device=images.device) + 0.5) * fewer / length - 0.5
        first = place.clamp_min(0).floor()  # of the coarse voxels on either side
        second = torch.minimum(first + 1, fewer - 1)
        weight = _along(place.clamp_min(0) - first, axis)
        ends = [((n + 0.5) * length / fewer).floor().long() for n in (first, second)]
        below, above = (images.gather(2 + axis, _along(n, axis).expand_as(images)) for n in ends)
        images = below + (above - below) * weight
    return images


def gamma_corrected(images: Tensor, gamma: Tensor, *, inverted: bool) -> Tensor:
    """Return channels to the power of gamma (N, C) within their range, of their mean and deviation.

    Args:
        images: (N, C, Z, Y, X).
        gamma: above 0.
        inverted: does so to the negative.
    """
    own = -images if inverted else images
    low = own.amin((2, 3, 4), keepdim=True)
    extent = own.amax((2, 3, 4), keepdim=True) - low
    powered = ((own - low) / extent.clamp_min(_TINY)) ** spread(gamma) * extent + low
    (mean, deviation), (wanted_mean, wanted) = _statistics(powered), _statistics(own)
    made = (powered - mean) / deviation.clamp_min(_TINY) * wanted + wanted_mean
    return -made if inverted else made


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, (N, C, 1, 1, 1)."""
    mean = images.mean((2, 3, 4), keepdim=True)
    return mean, (images - mean).square().mean((2, 3, 4), keepdim=True).sqrt()


def spread(values: Tensor) -> Tensor:
    """Return numbers of channels (N, C) as (N, C, 1, 1, 1)."""
    return values[..., None, None, None]


def _along(values: Tensor, axis: int) -> Tensor:
    """Return numbers (N, C, L) along Z, Y or X, with two axes of 1."""
    shape = [*values.shape[:2], 1, 1, 1]
    shape[2 + axis] = values.shape[2]
    return values.view(shape)
