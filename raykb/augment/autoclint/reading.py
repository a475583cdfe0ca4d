"""What AutoCLINT reads of unknown data, once: their size, kind and range.

The size rule (official code): an input is at most ``side`` long, twice that where one side is more
than twice the other; the ratio is kept; both sides are multiples of 16, ``int(x / 16 + 0.8) * 16``,
unless both are 32 or less, which are kept as they are. Videos have at most ``frames`` of their
frames, equally far apart.

Departures: pixels are kept as bytes after the resize, for the operations of a policy are made of
bytes; floats of another range than [0, 1] are scaled from the least to the greatest value of the
scan. A median of other sizes does not arise: examples of a part have one size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.augment.autoclint.settings import AutoClint

SCAN = 256  # examples that are looked at


def input_size(
    height: int, width: int, frames: int = 1, *, side: int = 64, most_frames: int = 8
) -> tuple[int, int, int]:
    """Return frames, height and width of the network's input."""
    long, short = max(height, width), min(height, width)
    bound = min(2 * side if long > 2 * short else side, long)
    kept = min(frames, most_frames)
    if long <= 32:
        return kept, height, width
    small = bound * short / long
    tall, wide = (_multiple(bound if each == long else small) for each in (height, width))
    return kept, tall, wide


def _multiple(length: float) -> int:
    return max(16, int(length / 16 + 0.8) * 16)


@dataclass(frozen=True)
class Reading:
    """What was found.

    Attributes:
        size: (T, H, W) of the input.
        channels: of the examples.
        low: value that becomes 0.
        high: value that becomes 255.
        multi_label: whether some example has several classes.
    """

    size: tuple[int, int, int]
    channels: int
    low: float
    high: float
    multi_label: bool

    @classmethod
    def of(cls, examples: np.ndarray, labels: np.ndarray, settings: AutoClint) -> "Reading":
        """Scan the first examples (N, T, C, H, W) and labels (N, classes)."""
        _, frames, channels, height, width = examples.shape
        size = input_size(height, width, frames, side=settings.side, most_frames=settings.frames)
        low, high = 0.0, 255.0
        if examples.dtype != np.uint8:
            low, high = float(examples[:SCAN].min()), float(examples[:SCAN].max())
            if low >= -0.05 and 0.5 < high <= 1.05:
                low, high = 0.0, 1.0
        return cls(size, channels, low, high, bool((labels[:SCAN].sum(axis=1) > 1).any()))

    @property
    def video(self) -> bool:
        """Whether examples have several frames."""
        return self.size[0] > 1

    def taken(self, examples: np.ndarray) -> Tensor:
        """Return examples as the network's input, uint8 (N, T, C, H, W) of :attr:`size`."""
        frames, *sides = self.size
        if examples.shape[1] > frames:
            times = (np.arange(frames) + 0.5) * examples.shape[1] / frames
            examples = examples[:, times.astype(int)]
        values = torch.from_numpy(np.ascontiguousarray(examples))
        if values.dtype == torch.uint8 and list(values.shape[3:]) == sides:
            return values
        scaled = (values.float() - self.low) * (255.0 / max(self.high - self.low, 1e-12))
        if list(values.shape[3:]) != sides:
            scaled = F.interpolate(
                scaled.flatten(0, 1), sides, mode="bicubic", antialias=True, align_corners=False
            ).unflatten(0, values.shape[:2])
        return scaled.round().clamp(0, 255).byte()


def held_out(labels: np.ndarray, settings: AutoClint, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending positions to train on, and those to validate on, drawn without regard."""
    count = max(1, min(int(settings.valid_share * len(labels)), settings.valid_most))
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(order[count:]), np.sort(order[:count])
