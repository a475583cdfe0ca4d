"""Weak and strong views of unlabelled images, uint8 in and out, a batch at a time.

Sohn et al., "FixMatch", NeurIPS 2020, arXiv 2001.07685, with the settings of its PyTorch
re-implementations (LeeDoYup/FixMatch-pytorch, TorchSSL, USB):

    weak     crop from the image padded by reflection, and flip
    strong   a weak view of its own draws; then operations drawn with replacement from 14, each
             with a uniform magnitude; then Cutout, its side uniform and its colour grey

What becomes of an image depends on (seed, epoch, id, view) alone: not on the batch, the worker or
the device it meets it on.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raykb.data.operations import apply_operation
from raykb.engine.arguments import at_least, check_settings, within
from raykb.engine.seeding import keyed_uniform, stream_seed

# The ranges of those re-implementations: the enhancements only ever reduce.
RANGES: dict[str, tuple[float, float]] = {
    "AutoContrast": (0.0, 0.0),
    "Brightness": (0.05, 0.95),
    "Color": (0.05, 0.95),
    "Contrast": (0.05, 0.95),
    "Equalize": (0.0, 0.0),
    "Identity": (0.0, 0.0),
    "Posterize": (4.0, 8.0),
    "Rotate": (-30.0, 30.0),
    "Sharpness": (0.05, 0.95),
    "ShearX": (-0.3, 0.3),
    "ShearY": (-0.3, 0.3),
    "Solarize": (0.0, 256.0),
    "TranslateX": (-0.3, 0.3),
    "TranslateY": (-0.3, 0.3),
}
"""Least and greatest magnitude of each of the 14 operations, as sides, degrees, bits or factors."""

_NAMES = tuple(RANGES)
_WEAK_DRAWS = 3  # crop y, crop x, flip


class PairOfViews(Protocol):
    """Makes the views of unlabelled images; keyed by seed, epoch and id."""

    @property
    def strong_views(self) -> int:
        """Strong views of each image; S."""

    def __call__(
        self, images: Tensor, ids: np.ndarray | Tensor, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return weak (N, C, H, W) and strong views (N, S, C, H, W) of ``images``, uint8."""

    def weak(self, images: Tensor, ids: np.ndarray | Tensor, seed: int, epoch: int) -> Tensor:
        """Return the weak views alone, as for labelled images."""


@dataclass(frozen=True, kw_only=True)
class WeakStrong:
    """FixMatch's pair of views.

    Attributes:
        crop: reflected border on each side before the crop, as a share of the side; 0 for none.
        flip: whether half of the images are mirrored left to right (not for digits).
        operations: how many of the 14 a strong view goes through.
        cutout: greatest side of the strong view's grey square, as a share of the width; 0 for none.
        strong_views: strong views of each image; a method that wants more than one says so.
    """

    crop: float = 0.125
    flip: bool = True
    operations: int = 3
    cutout: float = 0.5
    strong_views: int = 1

    def __post_init__(self) -> None:
        share, count = within(0, 1), {"operations": at_least(0), "strong_views": at_least(1)}
        check_settings(self, crop=share, cutout=share, **count)

    def __call__(
        self, images: Tensor, ids: np.ndarray | Tensor, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return the weak (N, C, H, W) and the strong views (N, S, C, H, W) of uint8 images.

        Args:
            images: uint8, one channel or three, on any device.
            ids: (N,) integer sample ids.
            seed: of the views.
            epoch: each sees other views.
        """
        weak = self.weak(images, ids, seed, epoch)
        draws = _WEAK_DRAWS + 2 * self.operations + 3
        strong = []
        for number in range(self.strong_views):
            place = (epoch, number) if number else (epoch,)
            uniforms = keyed_uniform(stream_seed(seed, "strong view", *place), ids, draws)
            strong.append(self._strong(images, uniforms))
        return weak, torch.stack(strong, 1)

    def weak(self, images: Tensor, ids: np.ndarray | Tensor, seed: int, epoch: int) -> Tensor:
        """Return the weak views alone; arguments as of a call."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images: {images.dtype} of shape {tuple(images.shape)}; must be uint8 of shape "
                "(N, 1, H, W) or (N, 3, H, W)"
            )
        if len(ids) != len(images):
            raise ValueError(f"ids: {len(ids)} for {len(images)} images; must be one for each")
        uniforms = keyed_uniform(stream_seed(seed, "weak view", epoch), ids, _WEAK_DRAWS)
        return self._weak(images, uniforms)

    def _weak(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return crops and flips of uniform numbers (N, 3)."""
        height, width = images.shape[2:]
        crop_y, crop_x, flip = uniforms[:, :, None].unbind(1)  # (N, 1)
        x = torch.arange(width).expand(len(images), -1)  # (N, W)
        if self.flip:
            x = torch.where(flip < 0.5, x.flip(1), x)
        x = _reflected(x + _offset(crop_x, int(self.crop * width)), width)
        y = _reflected(torch.arange(height) + _offset(crop_y, int(self.crop * height)), height)
        index = (y[:, :, None] * width + x[:, None, :]).to(images.device)  # (N, H, W)
        index = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, index).view(images.shape)

    def _strong(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return the strong views of uniform numbers (N, 3 + 2 operations + 3)."""
        out = self._weak(images, uniforms[:, :_WEAK_DRAWS])
        for number in range(self.operations):
            first = _WEAK_DRAWS + 2 * number
            _apply_drawn(out, uniforms[:, first], uniforms[:, first + 1])
        if self.cutout:
            sides = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float64)
            side, centre = uniforms[:, -3] * self.cutout, uniforms[:, -2:] * sides
            out = apply_operation(out, "Cutout", side, centre=centre)
        return out


PAIRS = {"fixmatch": WeakStrong}


def _apply_drawn(images: Tensor, choice: Tensor, level: Tensor) -> None:
    """Apply to each image, in place, the operation and magnitude that two uniform numbers say."""
    drawn = (choice * len(_NAMES)).long()  # (N,)
    for number in drawn.unique().tolist():
        if (name := _NAMES[number]) == "Identity":
            continue
        rows = (drawn == number).nonzero()[:, 0]
        low, high = RANGES[name]
        there = rows.to(images.device)
        images[there] = apply_operation(images[there], name, low + level[rows] * (high - low))


def _offset(uniform: Tensor, padding: int) -> Tensor:
    """Return whole numbers from -padding to padding, each as likely as the others."""
    return (uniform * (2 * padding + 1)).long() - padding


def _reflected(position: Tensor, size: int) -> Tensor:
    """Return positions outside [0, size) mirrored at the border's pixel, which is not repeated."""
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position).clamp(min=0)
