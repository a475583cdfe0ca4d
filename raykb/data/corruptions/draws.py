"""What is drawn for the corruption of images, by the name of what it is for.

Each image has numbers of its own, a function of (seed, corruption, severity, purpose, id): neither
the batch nor the device can change what an image becomes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raykb.data.keyed_numbers import keyed_bits
from raykb.engine.seeding import keyed_uniform, stream_seed

_STEP = 2.0**-24  # between two uniform numbers, which float32 has room for


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random numbers for the images of a batch.

    Attributes:
        seed: of all of them.
        stream: names of the stream, as the corruption and its severity.
        ids: (N,) integer sample ids.
        device: where the numbers are made.
    """

    seed: int
    stream: tuple[int | str, ...]
    ids: np.ndarray | Tensor
    device: torch.device

    def uniform(self, what: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return (N, *shape) float32 in [low, high)."""
        return self._uniform(what, math.prod(shape)).mul_(high - low).add_(low).view(-1, *shape)

    def normal(self, what: str, *shape: int) -> Tensor:
        """Return (N, *shape) float32 of mean 0 and variance 1; Box and Muller's way, in pairs."""
        count = math.prod(shape)
        radius, turn = self._uniform(what, count + count % 2).chunk(2, 1)
        radius = (radius + _STEP / 2).log_().mul_(-2).sqrt_()  # of no 0
        turn = turn.mul_(2 * torch.pi)
        return torch.cat([radius * turn.cos(), radius * turn.sin()], 1)[:, :count].view(-1, *shape)

    def _uniform(self, what: str, count: int) -> Tensor:
        """Return (N, count) float32 in [0, 1), two of each 64 bits that are drawn."""
        bits = keyed_bits(self._keys(what), (count + 1) // 2)
        halves = torch.cat([bits >> 8, bits >> 40], 1)[:, :count]
        return halves.bitwise_and_((1 << 24) - 1).float().mul_(_STEP)

    def _keys(self, what: str) -> Tensor:
        stream = stream_seed(self.seed, *self.stream, what)
        return keyed_uniform(stream, self.ids, 1)[:, 0].to(self.device)
