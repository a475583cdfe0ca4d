"""What is drawn for the corruption of images, by the name of what it is for.

Each image has numbers of its own, a function of (seed, corruption, severity, purpose, id): neither
the batch nor the device can change what an image becomes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raykb.data.keyed_numbers import keyed_normals, keyed_uniforms
from raykb.engine.seeding import keyed_uniform, stream_seed


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
        numbers = keyed_uniforms(self._keys(what), math.prod(shape))
        return numbers.mul_(high - low).add_(low).view(-1, *shape)

    def normal(self, what: str, *shape: int) -> Tensor:
        """Return (N, *shape) float32 of mean 0 and variance 1."""
        return keyed_normals(self._keys(what), math.prod(shape)).view(-1, *shape)

    def _keys(self, what: str) -> Tensor:
        stream = stream_seed(self.seed, *self.stream, what)
        return keyed_uniform(stream, self.ids, 1)[:, 0].to(self.device)
