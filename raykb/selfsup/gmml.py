"""GMML: say what was at connected groups of tokens that noise, or another image, has replaced.

Atito, Awais, Nandam, Kittler, "GMML is All you Need", ICIP 2023, arXiv:2205.14986.

    L  = sum_k m_k |x^_k - x_k| / sum_k m_k
    x^ = g(norm(mean_{b in B} f_b(x~)))

Symbols:
    x, x~   an image, and the same corrupted; k counts its pixels and channels
    m       1 where it is corrupted, in blocks of connected tokens
    f_b     tokens (T, width) after block b of the network; B is every second block, from the last
            one down to the middle
    g       three layers, linear and GELU, and a linear one to the pixels of a patch

An image is corrupted by noise, or blocks of it are replaced by the same blocks of another image:
the next one of the batch, over all ranks.

Departures:
    - blocks are aligned with tokens, as the paper says; the official code's default is not.
    - blocks may start at the last cell, too, and have sides of whole cells, so that a border is
      hidden as often as it can be (official code: starts leave out the last cell).
    - an image is in a batch once (official code: two crops of it, whose losses are added).
    - what replaces pixels is drawn by (seed, epoch, id) (official code: it cannot be repeated).
    - sum |.| m / sum m over the batch, which is the mean of the official code's selected pixels.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raykb.engine.arguments import among, at_least, between, check_settings, or_none
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import WithPatches, require
from raykb.parts.gather import gather, ranks
from raykb.parts.patches import grid, pictured
from raykb.parts.precision import in_float32
from raykb.selfsup.batch import CorruptedBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.reconstruction import mean_where


@in_float32
def gmml_loss(reconstructed: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Return L, a scalar, over corrupted pixels alone.

    Args:
        reconstructed: (N, C, H, W).
        images: (N, C, H, W).
        mask: (N, 1, H, W) bool.
    """
    return mean_where((reconstructed - images).abs(), mask)


def with_aliens(corrupted: Tensor, images: Tensor, mask: Tensor, alien: Tensor) -> Tensor:
    """Return corrupted images (N, C, H, W), those of ``alien`` (N,) by the next image's pixels."""
    first = gather(images[:1])  # of each rank
    rank = dist.get_rank() if ranks() > 1 else 0
    following = torch.cat([images[1:], first[(rank + 1) % ranks()][None]])
    return torch.where(mask & alien[:, None, None, None], following, corrupted)


class GMML(Objective):
    """GMML.

    Args:
        task: what it is told; its network must have patches.
        drop: noise covers at least a share of an image that is uniform from min(0.5, ``drop``) to
            this.
        replace: share of an image that another one covers, at least.
        aliens: share of the images that get another image, not noise.
        longest: longest side of a block, by that of the image.
        align: side of the cells in pixels that blocks are made of; None for that of a patch.
        fill: ``noise``, or ``zeros``.
        blocks: B, from 1 to the network's depth, which is among them, or some would not be
            trained; None for every second one.

    Attributes:
        align: side of the cells in pixels.
    """

    sees = CorruptedBatch

    def __init__(
        self,
        task: Task,
        *,
        drop: float = 0.75,
        replace: float = 0.3,
        aliens: float = 0.5,
        longest: float = 0.3,
        align: int | None = None,
        fill: Literal["noise", "zeros"] = "noise",
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(task)
        self.drop, self.replace, self.aliens, self.longest = drop, replace, aliens, longest
        self.fill, self.align = fill, align
        check_settings(
            self,
            fill=among("noise", "zeros"),
            align=or_none(at_least(1)),
            drop=between(0.01, 0.95),
            replace=between(0.01, 0.95),
            aliens=between(0, 1),
            longest=between(0.01, 1),
        )
        network = require(task.network, WithPatches, "gmml")
        self.patch, width = network.patch, network.width
        self.align = self.patch if align is None else align
        self.blocks = every_second(network.depth) if blocks is None else tuple(blocks)
        if not self.blocks or min(self.blocks) < 1 or max(self.blocks) != network.depth:
            raise ValueError(
                f"blocks: {list(self.blocks)}; must be of 1..{network.depth}, and the last of them"
            )
        layers = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.GELU())]
        self.head = nn.Sequential(*layers, nn.Linear(width, network.channels * self.patch**2))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, the share ``corrupted`` of all pixels, and ``feature_std``."""
        backbone = require(network, WithPatches, "gmml")
        images, mask = batch.images, batch.mask
        seen = with_aliens(batch.corrupted, images, mask, batch.alien)
        embedded = backbone.embed(seen) + backbone.positions(seen)  # (N, T, width)
        tokens = backbone.encode(embedded, blocks=self.blocks)
        rows, _ = grid(images, self.patch)
        reconstructed = pictured(self.head(tokens), rows, self.patch)  # (N, C, H, W)
        return {
            "loss": gmml_loss(reconstructed, images, mask),
            "corrupted": gather(mask.flatten(1).float().mean(1)).mean(),
            "feature_std": feature_std(tokens.mean(1)),
        }


def every_second(depth: int) -> tuple[int, ...]:
    """Return every second block from the last one down to the middle, as 6, 8, 10, 12 of 12."""
    return tuple(sorted(range(depth, max(depth // 2 - 1, 0), -2)))
