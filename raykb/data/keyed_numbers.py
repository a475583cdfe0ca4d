"""Random numbers by key on the device that needs them, for whatever has one for each voxel.

SplitMix64 as :mod:`raykb.engine.seeding` has it, from a uniform number that was drawn there: what a
key gives is the same on every device and in every batch, and no device is waited for.
"""

import torch
from torch import Tensor

_WRAP = 1 << 64
_GAMMA = 0x9E3779B97F4A7C15 - _WRAP  # torch has no unsigned ones; products wrap alike
_MIX_1 = 0xBF58476D1CE4E5B9 - _WRAP
_MIX_2 = 0x94D049BB133111EB - _WRAP
_HALF = 24  # bits of a number, as many as a float32 keeps


def keyed_bits(keys: Tensor, count: int) -> Tensor:
    """Return (N, count) int64 of 64 random bits for keys (N,) float64 in [0, 1)."""
    start = _mixed((keys * 2.0**53).long() * _GAMMA)  # (N,)
    steps = torch.arange(1, count + 1, device=keys.device) * _GAMMA  # (count,)
    return _mixed(start[:, None] + steps)


def keyed_uniforms(keys: Tensor, count: int) -> Tensor:
    """Return (N, count) float32 in [0, 1) for keys (N,)."""
    return _shifted(keyed_bits(keys, count), 64 - _HALF).float() * 2.0**-_HALF


def keyed_normals(keys: Tensor, count: int) -> Tensor:
    """Return (N, count) float32 of mean 0 and variance 1 for keys (N,); Box and Muller's way."""
    bits = keyed_bits(keys, count)
    radius = (_shifted(bits, 64 - _HALF).float() + 0.5) * 2.0**-_HALF  # never 0
    turn = (bits & ((1 << _HALF) - 1)).float() * (2 * torch.pi * 2.0**-_HALF)
    return radius.log_().mul_(-2).sqrt_().mul_(turn.cos_())


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _MIX_1
    state = (state ^ _shifted(state, 27)) * _MIX_2
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, places: int) -> Tensor:
    """Return bits shifted to the right, with zeros from the left."""
    return (state >> places) & ((1 << (64 - places)) - 1)
