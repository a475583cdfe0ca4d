"""Whole volumes through a network that takes tiles: overlapping, weighted by a Gaussian.

    tiles      as many as a step of half a tile needs, spread evenly over each axis
    weight     exp(-d^2 / 2 sigma^2),  d from the tile's middle, sigma = tile / 8

MONAI does it, from the extra ``medical``, and is imported on use: that takes seconds. Its tiles are
a whole number of voxels apart and the last one ends where the volume does; nnU-Net's are spread by
rounding, up to two voxels from these.
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raykb.engine.arguments import Rule, at_least, misfits, refuse


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """How a volume is cut into tiles, and where these are put together.

    Attributes:
        tile: voxels along each axis, as the network was trained with.
        step: from one tile to the next, as a share of the tile, at most.
        batch_size: tiles of one forward pass.
        voxels_on_device: of the largest volume that is put together on the network's device; those
            of a larger one travel to the CPU tile by tile. It is the volume that decides, not what
            memory is left when its turn comes.

    Raises:
        ValueError: an argument is out of its range.
    """

    tile: tuple[int, ...]
    step: float = 0.5
    batch_size: int = 1
    voxels_on_device: int = 2**26

    def __post_init__(self) -> None:
        share = Rule("above 0 and at most 1", lambda value: 0 < value <= 1)
        positive = Rule("positive along each axis", lambda tile: len(tile) > 0 and min(tile) > 0)
        refuse(
            misfits(
                self,
                tile=positive,
                step=share,
                batch_size=at_least(1),
                voxels_on_device=at_least(0),
            )
        )

    @torch.inference_mode()
    def logits(self, network: nn.Module, image: Tensor, device: torch.device) -> Tensor:
        """Return logits (K, …) of an image (C, …), on :meth:`place`.

        Where the volume is smaller than a tile it is filled up with zeros around.

        Args:
            network: from tiles to their logits; is on ``device``, in evaluation mode.
            image: on any device.
            device: of the network.

        Raises:
            ImportError: MONAI is not installed.
            ValueError: the image has other axes than the tile.
        """
        size = image.shape[1:]
        if len(size) != len(self.tile):
            raise ValueError(
                f"image: {tuple(image.shape)}, must have a channel and {len(self.tile)} more axes, "
                f"as the tile {self.tile}"
            )
        place = self.place(size, device)

        def said(tiles: Tensor) -> Tensor:
            logits: Tensor = network(tiles.clone())
            return logits  # which MONAI weighs in place: it may share no memory with the volume

        found: Tensor = _monai().sliding_window_inference(
            image[None].to(place),
            self.tile,
            self.batch_size,
            said,
            overlap=[_overlap(*axis, self.step) for axis in zip(size, self.tile, strict=True)],
            mode="gaussian",
            sigma_scale=1 / 8,
            sw_device=device,
            device=place,
        )
        return found[0]

    def place(self, size: Sequence[int], device: torch.device) -> torch.device:
        """Return where a volume of such a size is put together."""
        return device if math.prod(size) <= self.voxels_on_device else torch.device("cpu")


def _monai() -> Any:
    try:
        return importlib.import_module("monai.inferers.utils")
    except ImportError as error:
        raise ImportError(
            "sliding window: is MONAI's, which is not installed; run: pip install 'raykb[medical]'"
        ) from error


def _overlap(length: int, tile: int, step: float) -> float:
    """Return the share of a tile that the next one covers, so that tiles are spread evenly."""
    room = length - tile
    if room <= 0:
        return 0.0
    steps = math.ceil(room / (tile * step))
    apart = math.ceil(room / steps)
    return max(0.0, 1 - (apart + 0.5) / tile)  # MONAI takes the whole voxels of what is not covered
