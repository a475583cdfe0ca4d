"""Corruptions by the batch are those of one image at a time, and what their names promise."""

import numpy as np
import pytest
import torch
from plain_corruptions import PLAIN, SameNumbers

from raykb.data.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, corrupted
from raykb.data.corruptions.draws import Draws

ALL = {**CORRUPTIONS, **EXTRA}


def pictures(count=4, channels=3, height=32, width=32):
    """Return images (N, C, H, W) uint8 with even parts, edges, slopes, noise, black and white."""
    numbers = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 5, generator=numbers)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    blocks = torch.nn.functional.interpolate(coarse.flip(2), (height, width))
    noise = torch.rand(count, channels, height, width, generator=numbers)
    whole = torch.where(blocks > 0.5, 1.3 * smooth - 0.1, 0.8 * blocks) + 0.1 * noise
    return whole.clamp(0, 1).mul(255).round().byte()


def draws_of(name, severity, ids, seed=3):
    stream = ("corruption", name, severity)
    return Draws(seed=seed, stream=stream, ids=ids, device=torch.device("cpu"))


def apart(name, severity, images, constants):
    """Return by how much each value of the batch is off the plain formula's, at most 1."""
    ids, row = np.arange(5, 5 + len(images)), getattr(ALL[name], constants)[severity - 1]
    found = ALL[name].formula(images / 255, draws_of(name, severity, ids), *row)
    off = []
    for number, image in enumerate(images):
        plain = image.permute(1, 2, 0).numpy() / 255
        numbers = SameNumbers(draws_of(name, severity, ids[number : number + 1]))
        wanted = PLAIN[name](plain, numbers, *row).clip(0, 1)
        off.append(abs(found[number].clamp(0, 1).permute(1, 2, 0).numpy() - wanted))
    return np.stack(off)
