"""Blur: each pixel is a mean of others; images are (N, C, H, W) float32 in [0, 1]."""

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.data.corruptions.draws import Draws
from raykb.data.corruptions.lines import along_axes, blurring, folded, gaussian, zooming
from raykb.data.corruptions.values import whole

_UNSEEN = 1e-6  # of the largest weight: what is less changes no byte


def gaussian_blur(images: Tensor, _: Draws, sigma: float) -> Tensor:
    """Return images blurred by a Gaussian of ``sigma`` pixels; its border is repeated."""
    height, width = images.shape[2:]
    return along_axes(images, blurring(height, sigma), blurring(width, sigma))


def defocus_blur(images: Tensor, _: Draws, radius: float, alias: float) -> Tensor:
    """Return means over discs of ``radius`` pixels, whose rims a Gaussian of ``alias`` softens."""
    kernel = disc(radius, alias).float().to(images.device)
    reach = len(kernel) // 2
    rows, columns = (
        folded(torch.arange(-reach, side + reach), side, "mirror").to(images.device)
        for side in images.shape[2:]
    )
    padded = images.flatten(0, 1)[:, None].index_select(2, rows).index_select(3, columns)
    return F.conv2d(padded, kernel[None, None]).view(images.shape)


@functools.lru_cache(maxsize=16)
def disc(radius: float, alias: float) -> Tensor:
    """Return the weights (2 R + 1, 2 R + 1) float64 of a disc, without rows that are all zeros."""
    side, soft = (17, 1) if radius <= 8 else (2 * int(radius) + 1, 2)
    offsets = torch.arange(side) - side // 2
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).double()
    softened = torch.zeros(side, side, dtype=torch.float64)
    places = folded(torch.arange(side)[:, None] + torch.arange(-soft, soft + 1), side, "mirror")
    softened.scatter_add_(1, places, gaussian(alias, soft).expand(side, -1))
    weights = softened @ (inside / inside.sum()) @ softened.T
    reach = int(offsets[weights.amax(1) > _UNSEEN * weights.max()].max())
    kept = slice(side // 2 - reach, side // 2 + reach + 1)
    return weights[kept, kept]


def glass_blur(images: Tensor, draws: Draws, sigma: float, reach: int, passes: int) -> Tensor:
    """Return images blurred, with pixels from up to ``reach`` beside, and blurred again."""
    images = whole(gaussian_blur(images, draws, sigma))
    height, width = images.shape[2:]
    pixels = images.flatten(2)
    for number in range(passes):
        offsets = draws.uniform(f"pass {number}", 2, height, width, low=-reach, high=reach)
        source = scattered(offsets.floor().long(), reach)[:, None]
        pixels = pixels.gather(2, source.expand(-1, images.shape[1], -1))
    return gaussian_blur(pixels.view(images.shape), draws, sigma)


def scattered(offsets: Tensor, reach: int) -> Tensor:
    """Return which pixel each pixel becomes, (N, H * W), when each is overwritten in its turn.

    Pixels are gone through from the last to the first, but for a border of ``reach``; each takes
    the value that stands at its offset *by then*. If that one has had its turn, the value is the
    one that it took, and so on: a chain of pixels that ends at one whose turn is yet to come.
    Chains are followed by all at once, at every step twice as far.

    Args:
        offsets: (N, 2, H, W) whole numbers from -reach to reach - 1: along x, along y.
        reach: in pixels.
    """
    height, width = offsets.shape[2:]
    own = torch.arange(height * width, device=offsets.device)
    rows, columns = own // width, own % width
    turns = (rows > reach) & (rows <= height - reach) & (columns > reach)
    turns &= columns <= width - reach  # (H * W,) which are overwritten
    across, down = offsets.flatten(2).unbind(1)  # (N, H * W)
    taken = torch.where(turns, own + down * width + across, own)
    ends = torch.where(turns[taken] & (taken > own), taken, own)
    for _ in range(math.ceil(math.log2(height * width))):
        ends = ends.gather(1, ends)
    return taken.gather(1, ends)


def motion_blur(images: Tensor, draws: Draws, radius: int, sigma: float) -> Tensor:
    """Return images that moved to the right, by up to 45 degrees upwards or downwards."""
    return streaks(images, draws.uniform("angle", low=-45.0, high=45.0), radius, sigma)


def streaks(images: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """Return images blurred along a direction each, by half of a Gaussian; borders are repeated.

    Args:
        images: (N, C, H, W).
        degrees: (N,), from the right on, clockwise.
        radius: the half Gaussian is of 2 radius + 1 pixels.
        sigma: of it, in pixels.
    """
    height, width = images.shape[2:]
    weights = gaussian(sigma, 2 * radius)[2 * radius :]
    weights = weights[weights > _UNSEEN * weights[0]]
    steps = torch.arange(len(weights), device=images.device)
    turn = torch.deg2rad(degrees)[:, None]
    down, across = ((steps * f(turn) - 0.5).ceil().long() for f in (torch.sin, torch.cos))
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    pixels, out = images.flatten(2), torch.zeros_like(images).flatten(2)
    for step, weight in enumerate((weights / weights.sum()).tolist()):
        y = (rows + down[:, step, None]).clamp_(0, height - 1)  # (N, H)
        x = (columns + across[:, step, None]).clamp_(0, width - 1)
        index = (y[:, :, None] * width + x[:, None, :]).flatten(1)[:, None]
        out.add_(pixels.gather(2, index.expand_as(pixels)), alpha=weight)
    return out.view(images.shape)


def zoom_blur(images: Tensor, _: Draws, most: float, step: float) -> Tensor:
    """Return the mean of images and of their enlargements by 1, 1 + step, … up to ``most``.

    Whether ``most`` is among them is numpy's rounding of ``arange(1, most, step)``, as there.
    """
    height, width = images.shape[2:]
    factors = np.arange(1, most, step).tolist()
    total = images.clone()
    for factor in factors:
        total += along_axes(images, zooming(height, factor), zooming(width, factor))
    return total / (len(factors) + 1)
