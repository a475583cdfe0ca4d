"""Views of images some of which is hidden, or replaced, for a network to fill in.

MaskedView      images, mask, ids                      patches chosen at random
CorruptedView   images, corrupted, mask, alien, ids    blocks of connected cells

All are made of random crops (CROPS), uint8 on their way and normalised at the end. Their settings
have the names that the objective gives them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raykb.data.crop_views import normalised
from raykb.data.crops import RandomCrops
from raykb.data.source import Fields
from raykb.data.views import ImageView
from raykb.engine.seeding import keyed_uniform, stream_seed
from raykb.parts.patches import enlarged, grid, hidden_count

_LOT = 64  # blocks drawn at a time
_LEAST = 2.0**-54  # below any draw but 0, of which the normal distribution's place is infinite


@dataclass(frozen=True)
class MaskedView:
    """Images, and which of their patches are hidden.

    Attributes:
        crops: draws a crop of each image.
        form: has mean and standard deviation; its augmentation is not used.
        patch: side of a patch in pixels.
        mask_ratio: share that is hidden, rounded up.
        unit: patches on each side of a square that is hidden as a whole.
    """

    crops: RandomCrops
    form: ImageView
    patch: int
    mask_ratio: float
    unit: int = 1

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return images (n, C, S, S) uint8, mask (n, T) and ids (n,)."""
        images = self.crops.views(arrays["images"], ids, seed, epoch, 1)[:, 0]
        rows, columns = grid(images, self.patch * self.unit)
        draws = keyed_uniform(stream_seed(seed, "mask", epoch), ids, rows * columns)
        mask = lowest(draws, hidden_count(rows * columns, self.mask_ratio))
        mask = enlarged(mask.unflatten(1, (rows, columns)), self.unit).flatten(1)
        return {"images": images, "mask": mask.to(images.device), "ids": torch.from_numpy(ids)}

    def finish(self, arrays: Fields) -> Fields:
        """Return images as float32, mask and ids."""
        return arrays | {"images": normalised(self.form, arrays["images"])}

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images."""
        return arrays | {"images": self.form.plain(arrays["images"])}


@dataclass(frozen=True)
class CorruptedView:
    """Images, and the same with groups of connected cells replaced by noise.

    The share that noise covers is uniform from min(0.5, ``drop``) to ``drop``; where another image
    is to be pasted instead, it is ``replace``. Blocks are drawn until they cover it, so that they
    cover somewhat more.

    Attributes:
        crops: draws a crop of each image.
        form: has mean and standard deviation; its augmentation is not used.
        align: side of a cell in pixels; blocks are made of whole ones.
        drop: greatest share of an image that noise covers, at least.
        replace: share of an image that another one covers, at least.
        aliens: share of the images that get another image.
        longest: longest side of a block, by that of the image; with ``align`` as long as this,
            blocks are single cells.
        fill: what replaces pixels: normal ``noise``, or ``zeros``.
    """

    crops: RandomCrops
    form: ImageView
    align: int
    drop: float = 0.75
    replace: float = 0.3
    aliens: float = 0.5
    longest: float = 0.3
    fill: Literal["noise", "zeros"] = "noise"

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return images (n, C, S, S) uint8, noise, mask (n, 1, S, S), alien and ids (n,).

        Raises:
            ValueError: cells do not fill the images, or none is as short as a block.
        """
        images = self.crops.views(arrays["images"], ids, seed, epoch, 1)[:, 0]
        choice, area = keyed_uniform(stream_seed(seed, "corruption", epoch), ids, 2).unbind(1)
        alien = choice < self.aliens  # (n,)
        low = min(0.5, self.drop)
        share = torch.where(alien, self.replace, low + area * (self.drop - low))
        mask = self._blocks(images, ids, share, seed, epoch).to(images.device)
        fields = {"images": images, "mask": mask, "alien": alien.to(images.device)}
        if self.fill == "noise":
            draws = keyed_uniform(stream_seed(seed, "noise", epoch), ids, images[0].numel())
            normal = torch.special.ndtri(draws.clamp(min=_LEAST)).view(images.shape)
            fields["noise"] = normal.float().to(images.device)
        return fields | {"ids": torch.from_numpy(ids)}

    def finish(self, arrays: Fields) -> Fields:
        """Return images and corrupted (n, C, S, S) float32, mask, alien and ids."""
        images, mask = normalised(self.form, arrays["images"]), arrays["mask"]
        filling = arrays.get("noise", torch.zeros((), device=images.device))
        return arrays | {"images": images, "corrupted": torch.where(mask, filling, images)}

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images."""
        return arrays | {"images": self.form.plain(arrays["images"])}

    def _blocks(
        self, images: Tensor, ids: np.ndarray, share: Tensor, seed: int, epoch: int
    ) -> Tensor:
        """Return masks (n, 1, H, W) that cover at least a share (n,) of each image."""
        sides = grid(images, self.align)
        longest = [int(self.longest * side / self.align + 1e-9) for side in images.shape[2:]]
        if min(longest) < 1:
            height, width = images.shape[2:]
            raise ValueError(
                f"align: {self.align} pixels, blocks of images of {height} x {width} have at most "
                f"{self.longest:g} of their sides; take a smaller one, or raise longest"
            )
        mask, lot = torch.zeros(len(ids), *sides, dtype=torch.bool), 0
        while (short := _covered(mask) < share).any():
            draws = keyed_uniform(stream_seed(seed, "blocks", epoch, lot), ids, 4 * _LOT)
            for block in draws.unflatten(1, (_LOT, 4)).unbind(1):
                mask |= _block(block, sides, longest) & short[:, None, None]
                short = _covered(mask) < share  # (n,)
            lot += 1
        return enlarged(mask, self.align)[:, None]


def lowest(draws: Tensor, count: int) -> Tensor:
    """Return which draws (n, T) are the ``count`` lowest of their row, (n, T) bool."""
    return draws.argsort(1).argsort(1) < count


def _block(draws: Tensor, sides: tuple[int, int], longest: list[int]) -> Tensor:
    """Return a block of cells (n, h, w) for each of the draws (n, 4); the border cuts it off."""
    inside = []
    for axis, (side, most) in enumerate(zip(sides, longest, strict=True)):
        start, length = (draws[:, 2 * axis + i, None] for i in (0, 1))  # (n, 1)
        first = (start * side).long()
        cells = torch.arange(side)
        inside.append((cells >= first) & (cells < first + 1 + (length * most).long()))
    return inside[0][:, :, None] & inside[1][:, None, :]


def _covered(mask: Tensor) -> Tensor:
    """Return the share of each mask (n, h, w) that is set, (n,)."""
    return mask.flatten(1).double().mean(1)
