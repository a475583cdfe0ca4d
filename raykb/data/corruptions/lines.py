"""Blurs, zooms and grids of images as two matrices, one an axis: a product on any device.

out = y images x^T        y (H', H) and x (W', W), the same for all images (N, C, H, W)
"""

import functools
import math

import torch
from torch import Tensor


def along_axes(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return images (N, C, H', W') of which each row and each column is a matrix's product."""
    y, x = (matrix.to(images) for matrix in (y, x))
    return y @ (images @ x.mT)


def folded(places: Tensor, side: int, border: str) -> Tensor:
    """Return places outside [0, side) as the places inside that count for them.

    Args:
        places: whole numbers, of any shape.
        side: of the image, in pixels.
        border: ``edge`` a a|a b c|c c, ``mirror`` c b|a b c|b a or ``symmetric`` b a|a b c|c b.
    """
    if border == "edge" or side == 1:
        return places.clamp(0, side - 1)
    gap = 1 if border == "symmetric" else 0  # a mirror at a pixel does not repeat it
    period = 2 * (side - 1 + gap)
    places = places.remainder(period)
    return torch.minimum(places, period - gap - places)


def gaussian(sigma: float, reach: int) -> Tensor:
    """Return the weights (2 reach + 1,) float64 of a Gaussian that is cut off at ``reach``."""
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * max(sigma, 1e-9) ** 2))
    return weights / weights.sum()


@functools.lru_cache(maxsize=256)
def blurring(side: int, sigma: float, *, cut: float = 4.0, border: str = "edge") -> Tensor:
    """Return the matrix (side, side) of a Gaussian blur, cut off at ``cut`` sigma."""
    reach = int(cut * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    places = folded(torch.arange(side)[:, None] + offsets, side, border)  # (side, 2 reach + 1)
    weights = gaussian(sigma, reach).expand(side, -1)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, places, weights)


@functools.lru_cache(maxsize=256)
def zooming(side: int, factor: float) -> Tensor:
    """Return the matrix (side, side) that enlarges the middle of a line, linear between pixels."""
    seen = math.ceil(side / factor)
    made = round(seen * factor)
    first, cut = (side - seen) // 2, (made - side) // 2  # what is too much is cut off both ends
    places = torch.arange(cut, cut + side, dtype=torch.float64) * (seen - 1) / max(made - 1, 1)
    pixels = torch.arange(side) - first
    weights = (1 - (places[:, None] - pixels).abs()).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


@functools.lru_cache(maxsize=256)
def boxes(side: int, made: int) -> Tensor:
    """Return the matrix (made, side) of means over boxes, as Pillow's BOX resizes a line."""
    scale = side / made
    centres = (torch.arange(made, dtype=torch.float64) + 0.5) * scale
    apart = (torch.arange(side) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = ((apart > -0.5) & (apart <= 0.5)).double()
    return weights / weights.sum(1, keepdim=True)
