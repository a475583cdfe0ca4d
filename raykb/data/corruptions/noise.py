"""Noise: each value of an image by itself; images are (N, C, H, W) float32 in [0, 1]."""

import functools

import torch
from torch import Tensor

from raykb.data.corruptions.draws import Draws

_STEP = 2.0**-24  # between two uniform numbers


def gaussian_noise(images: Tensor, draws: Draws, spread: float) -> Tensor:
    """Return ``x + spread * n``, n normal."""
    return draws.normal("noise", *images.shape[1:]).mul_(spread).add_(images)


def speckle_noise(images: Tensor, draws: Draws, spread: float) -> Tensor:
    """Return ``x + x * spread * n``, n normal: what is bright is noisier."""
    return draws.normal("noise", *images.shape[1:]).mul_(spread).add_(1).mul_(images)


def impulse_noise(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Return images of which ``share`` of the values is 0 or 1, as often the one as the other."""
    uniforms = draws.uniform("noise", *images.shape[1:])
    return torch.where(uniforms < share, (uniforms < share / 2).float(), images)


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Return ``Poisson(x * photons) / photons``: a white pixel is reached by so many on average."""
    values = images.mul(255).round_().double()
    uniforms = draws.uniform("noise", *images.shape[1:])
    table = poisson_table(photons).to(images.device)  # (256, K)
    found = torch.searchsorted(table.flatten(), values + uniforms, right=True)
    return (found - values * table.shape[1]).div_(photons).float()


@functools.lru_cache(maxsize=16)
def poisson_table(photons: float) -> Tensor:
    """Return v + P(at most k photons) of pixels with each value v, (256, K) float64.

    Row after row it never falls, so that one search finds the count of any pixel: where v + u is,
    for u uniform in [0, 1), is how often the distribution's steps lie below u.
    """
    values = torch.arange(256, dtype=torch.float64)[:, None]
    counts = torch.arange(int(photons + 10 * photons**0.5) + 20, dtype=torch.float64)
    below = torch.special.gammaincc(counts + 1, values * photons / 255)
    last = int((below[-1] < 1 - _STEP).sum())  # what is rarer than a step is never drawn
    below[:, last] = 1.0
    table: Tensor = below[:, : last + 1] + values
    return table
