"""Images as rows of square patches, and how many of them are hidden."""

import math

import torch
from torch import Tensor


def patched(images: Tensor, patch: int) -> Tensor:
    """Return the patches (N, T, C patch patch) of images (N, C, H, W), row by row.

    Each has its first channel first, and of that its first row.

    Raises:
        ValueError: the patch does not divide the sides.
    """
    rows, columns = grid(images, patch)
    cut: Tensor = images.unflatten(3, (columns, patch)).unflatten(
        2, (rows, patch)
    )  # (N, C, h, p, w, p)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def pictured(patches: Tensor, rows: int, patch: int) -> Tensor:
    """Return the images (N, C, H, W) of which :func:`patched` makes ``patches``.

    Args:
        patches: (N, T, C patch patch).
        rows: of patches that an image has.
        patch: side of a patch.
    """
    cut: Tensor = patches.unflatten(2, (-1, patch, patch)).unflatten(
        1, (rows, -1)
    )  # (N, h, w, C, p, p)
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def grid(images: Tensor, patch: int) -> tuple[int, int]:
    """Return how many patches images have below each other, and beside each other.

    Raises:
        ValueError: the patch does not divide the sides.
    """
    height, width = images.shape[2:]
    if height % patch or width % patch:
        raise ValueError(
            f"images: {height} x {width} pixels; squares of {patch} must fill them; take other "
            "patches, or set the view's size"
        )
    return height // patch, width // patch


def of_images(sizes: Tensor, patch: int, whole: tuple[int, int]) -> Tensor:
    """Return (N, T) bool: which patches of padded images are no padding, row by row.

    Args:
        sizes: (N, 2) height and width in pixels of what stands at the top left of each.
        patch: side of a patch in pixels; it divides them.
        whole: rows and columns of patches, with padding.
    """
    rows, columns = (
        torch.arange(count, device=sizes.device) < own[:, None]
        for count, own in zip(whole, (sizes // patch).unbind(1), strict=True)
    )
    return (rows[:, :, None] & columns[:, None]).flatten(1)


def hidden_count(patches: int, ratio: float) -> int:
    """Return how many patches are hidden: a share, rounded up; at least one, and never all.

    Raises:
        ValueError: there is one patch alone.
    """
    if patches < 2:
        raise ValueError(
            f"patches: {patches} of an image; there must be some to see and some to hide; take "
            "smaller ones"
        )
    count = math.ceil(patches * ratio - 1e-9)  # 100 * 0.55 is a bit more than 55
    return min(max(count, 1), patches - 1)


def enlarged(mask: Tensor, times: int) -> Tensor:
    """Return a mask (N, h, w) of cells as (N, h times, w times), of what they are made of."""
    return mask.repeat_interleave(times, 1).repeat_interleave(times, 2)
