"""U-Net (Ronneberger et al., MICCAI 2015, arXiv 1505.04597) as a flat sequential model.

``unet(B, C)`` is the network of torchgpipe's benchmarks (arXiv 2004.09910), whose parameter counts
it has: cells of B convolution units at every level, C channels at the finest, twice as many at each
coarser one:

    level 0     cell ─ stash ──────────────────────────── pop ─ cell ─ 1 x 1
    level 1        └─ pool ─ cell ─ stash ──── pop ─ cell ─ upsample ─┘
      ...                       └─ pool ─ ... ─ upsample ─┘

A unit is four layers: convolution 3 x 3 without bias, dropout of channels, instance norm, leaky
ReLU. With the depth of 5, 44 B + 21 layers in all.
"""

from collections import OrderedDict
from collections.abc import Generator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.parts.skip import Namespace, Skippable, pop, skippable, stash


@skippable(stash=["level"])
class Keep(nn.Module):
    """Leave the input for the decoder and pass it on."""

    def forward(self, x: Tensor) -> Generator[stash, None, Tensor]:
        """Return the input."""
        yield stash("level", x)
        return x


@skippable(pop=["level"])
class Concatenate(nn.Module):
    """Join (N, channels, H, W) with what the encoder left, along the channels.

    An input that is smaller than that, after a pooling of an odd size, is padded with zeros.
    """

    def forward(self, x: Tensor) -> Generator[pop, Tensor, Tensor]:
        """Return (N, channels + those of the encoder, height and width of the encoder's)."""
        level = yield pop("level")
        height, width = (a - b for a, b in zip(level.shape[2:], x.shape[2:], strict=True))
        if height or width:
            x = F.pad(x, (0, width, 0, height))
        return torch.cat([x, level], dim=1)


def unet(
    blocks: int,
    channels: int,
    depth: int = 5,
    *,
    input_channels: int = 3,
    output_channels: int = 1,
    dropout: float = 0.1,
) -> nn.Sequential:
    """Return a U-Net, from (N, input_channels, H, W) to logits (N, output_channels, H, W).

    Images have at least 2^depth pixels a side, and 2^(depth + 1) on one: instance norm needs more
    than one pixel at the coarsest level, in evaluation too. 2.21 billion parameters for (11, 128),
    15.82 billion for (48, 160).

    Args:
        blocks: B, the convolution units of a cell.
        channels: C, those of the finest level; even.
        depth: number of times that the resolution is halved.
        input_channels: of the images.
        output_channels: of the result, as classes of pixels.
        dropout: share of channels dropped after each convolution.

    Raises:
        ValueError: blocks, channels or depth are not as above.
    """
    even = channels >= 2 and channels % 2 == 0
    problems = [
        f"{name}={value}: must be {allowed}"
        for name, value, allowed, legal in (
            ("blocks", blocks, "at least 1, as 5", blocks >= 1),
            ("channels", channels, "even and at least 2, as 64", even),
            ("depth", depth, "at least 1, as 5", depth >= 1),
        )
        if not legal
    ]
    if problems:
        raise ValueError("; ".join(problems))
    network = OrderedDict[str, nn.Module]()

    def cell(name: str, inputs: int, middle: int, outputs: int) -> None:
        sizes = [inputs, *[middle] * (blocks - 1), outputs]
        for index, (before, after) in enumerate(pairwise(sizes)):
            unit = f"{name}_unit{index}"
            network[f"{unit}_conv"] = nn.Conv2d(before, after, 3, padding=1, bias=False)
            network[f"{unit}_dropout"] = nn.Dropout2d(dropout)
            network[f"{unit}_norm"] = nn.InstanceNorm2d(after)
            network[f"{unit}_relu"] = nn.LeakyReLU(0.01)

    levels = [Namespace(f"level{level}") for level in range(depth)]
    widths = [channels * 2**level for level in range(depth)]
    for level, width in enumerate(widths):
        cell(f"down{level}", widths[level - 1] if level else input_channels, width, width)
        network[f"down{level}_keep"] = cast(Skippable, Keep()).isolate(levels[level])
        network[f"down{level}_pool"] = nn.MaxPool2d(2)
    cell("bottom", widths[-1], 2 * widths[-1], widths[-1])
    for level, width in reversed(list(enumerate(widths))):
        network[f"up{level}_upsample"] = nn.Upsample(scale_factor=2)
        network[f"up{level}_concatenate"] = cast(Skippable, Concatenate()).isolate(levels[level])
        cell(f"up{level}", 2 * width, width // 2, width // 2)
    network["head"] = nn.Conv2d(channels // 2, output_channels, 1, bias=False)
    return nn.Sequential(network)
