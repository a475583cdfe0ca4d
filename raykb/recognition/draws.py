"""What regularisations draw: lambda, whether a batch is mixed at all, and boxes.

A generator is one of the CPU: what is drawn depends on it alone, whatever device the images are on.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def happens(probability: float, count: int, generator: torch.Generator) -> Tensor:
    """Return (count,) bool, each True with this probability."""
    return torch.rand(count, generator=generator, dtype=torch.float64) < probability


def beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Return (count,) float64 from Beta(alpha, alpha); torch's own takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count))


def centres(size: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """Return (count, 2) int64: any pixel (y, x) of images of this (height, width)."""
    each = [torch.randint(side, (count,), generator=generator) for side in size]
    return torch.stack(each, 1)


def boxes_around(centre: Tensor, sides: Tensor, size: Sequence[int]) -> Tensor:
    """Return boxes (n, 4), ``y1, x1, y2, x2`` with the latter two outside, cut off at the border.

    Args:
        centre: (n, 2) pixels (y, x).
        sides: (n, 2) or (2,) height and width in whole pixels, rounded down to even.
        size: height and width of the images.
    """
    half = sides // 2
    corners = torch.cat([centre - half, centre + half], 1)  # (n, 4)
    return corners.clamp(min=0).minimum(torch.tensor([*size, *size]))


def uncovered(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Return (n,) float64: the share of the pixels that are outside of boxes (n, 4)."""
    height, width = (boxes[:, 2:] - boxes[:, :2]).double().unbind(1)
    return 1.0 - height * width / (size[0] * size[1])


def outside(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Return (n, 1, H, W) bool: whether a pixel is outside of its box (n, 4)."""
    y1, x1, y2, x2 = boxes[:, :, None].unbind(1)  # (n, 1)
    y, x = (torch.arange(side, device=boxes.device) for side in size)
    rows, columns = (y < y1) | (y >= y2), (x < x1) | (x >= x2)  # (n, H), (n, W)
    rows, columns = (each.view(torch.uint8) for each in (rows, columns))  # 4 times as fast as bool
    return (rows[:, None, :, None] | columns[:, None, None, :]).view(torch.bool)
