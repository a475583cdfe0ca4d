"""The U-Net of nnU-Net: kernels and strides of each stage as a plan has them, in 2-D or 3-D.

    level 0     stage ───────────────────────────── join ─ stage ─ head     (finest)
    level 1       └─ stage ──────────── join ─ stage ─┴─ head
      …                └─ … ─ stage ─┘    └─ head
    level S-1                 (the bottleneck has no head)

A stage has two convolutions, each followed by instance norm and leaky ReLU; the first one of a
stage of the encoder has its stride. Going up is a transposed convolution by the same stride, whose
output is joined with what the encoder had at that level.

Isensee, Jaeger, Kohl, Petersen, Maier-Hein, "nnU-Net: a self-configuring method for deep
learning-based biomedical image segmentation", Nature Methods 18 (2021).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

Stages = Sequence[Sequence[int]]

_SLOPE = 0.01
_CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class PlannedUNet(nn.Module):
    """A U-Net, from (N, channels, …) to logits (N, classes, …) of the same size.

    While it is trained with deep supervision it returns a tuple of logits: of level 0, which is as
    large as the images, and of each coarser one but the bottleneck. Otherwise, and always in
    evaluation, it returns those of level 0 alone.

    Args:
        classes: of voxels, with the background.
        channels: of the images.
        strides: (S, d) of each stage from the one before, the finest first; that one has ones.
        kernel_sizes: (S, d) of each stage, odd.
        widths: (S,) channels of each stage.
        deep_supervision: whether coarser levels have a head each.

    Raises:
        ValueError: there are fewer than two stages, or not as many of each, or other axes than two
            or three.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 1,
        *,
        strides: Stages,
        kernel_sizes: Stages,
        widths: Sequence[int],
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        _check(strides, kernel_sizes, widths)
        self.deep_supervision = deep_supervision
        self.strides = [tuple(stride) for stride in strides]
        axes, ones = len(strides[0]), self.strides[0]
        inputs = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _stage(*stage) for stage in zip(inputs, widths, kernel_sizes, self.strides, strict=True)
        )
        self.up = nn.ModuleList(
            _TRANSPOSED[axes](coarse, fine, stride, stride)
            for (fine, coarse), stride in zip(pairwise(widths), self.strides[1:], strict=True)
        )
        self.decoder = nn.ModuleList(
            _stage(2 * width, width, kernel, ones)
            for width, kernel in zip(widths[:-1], kernel_sizes[:-1], strict=True)
        )
        heads = widths[:-1] if deep_supervision else widths[:1]
        self.heads = nn.ModuleList(_CONVOLUTIONS[axes](width, classes, 1) for width in heads)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits of images (N, channels, …).

        Raises:
            ValueError: the coarsest stage does not divide their size.
        """
        self._check_size(images)
        kept: list[Tensor] = []
        x = images
        for stage in self.encoder:
            x = stage(x)
            kept.append(x)
        levels = len(self.heads) if self.training else 1
        logits: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](torch.cat([self.up[level](x), kept[level]], dim=1))
            if level < levels:
                logits.append(self.heads[level](x))
        return tuple(logits[::-1]) if self.training and self.deep_supervision else logits[-1]

    def _check_size(self, images: Tensor) -> None:
        size = tuple(images.shape[2:])
        divisor = tuple(map(prod, zip(*self.strides, strict=True)))
        if len(size) != len(divisor) or any(s % d for s, d in zip(size, divisor, strict=True)):
            raise ValueError(
                f"images: of {size} voxels, must be multiples of {divisor}; pad them, or take "
                "patches of such a size"
            )


def unet_3d(
    classes: int,
    channels: int = 1,
    *,
    width: int = 32,
    depth: int = 4,
    most: int = 320,
    deep_supervision: bool = False,
) -> PlannedUNet:
    """Return a plain 3-D U-Net: cubic kernels of 3, all axes halved at each level.

    Args:
        classes: of voxels, with the background.
        channels: of the images.
        width: channels of the finest level, doubled at each coarser one.
        depth: how often the resolution is halved, at least 1.
        most: channels of any level.
        deep_supervision: as for :class:`PlannedUNet`.
    """
    return PlannedUNet(
        classes,
        channels,
        strides=[(1, 1, 1), *[(2, 2, 2)] * depth],
        kernel_sizes=[(3, 3, 3)] * (depth + 1),
        widths=[min(width * 2**level, most) for level in range(depth + 1)],
        deep_supervision=deep_supervision,
    )


def _check(strides: Stages, kernel_sizes: Stages, widths: Sequence[int]) -> None:
    problems = []
    if len(widths) < 2 or not len(strides) == len(kernel_sizes) == len(widths):
        problems.append(
            f"strides, kernel_sizes, widths: of {len(strides)}, {len(kernel_sizes)} and "
            f"{len(widths)} stages, must be of as many each, at least 2"
        )
    axes = {len(stage) for stage in (*strides, *kernel_sizes)}
    if axes not in ({2}, {3}):
        problems.append(f"strides, kernel_sizes: of {sorted(axes)} axes, must be of 2 or 3")
    if any(stride != 1 for stride in strides[0]):
        problems.append(f"strides[0]: {tuple(strides[0])}, must be 1 along each axis")
    if any(size % 2 == 0 for stage in kernel_sizes for size in stage):
        problems.append(f"kernel_sizes: {list(map(tuple, kernel_sizes))}, must be odd")
    if problems:
        raise ValueError("; ".join(problems))


def _stage(inputs: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Sequential:
    ones = (1,) * len(kernel)
    return nn.Sequential(
        _convolution(inputs, width, kernel, stride), _convolution(width, width, kernel, ones)
    )


def _convolution(
    inputs: int, width: int, kernel: Sequence[int], stride: Sequence[int]
) -> nn.Sequential:
    axes, padding = len(kernel), tuple(size // 2 for size in kernel)
    return nn.Sequential(
        _CONVOLUTIONS[axes](inputs, width, tuple(kernel), tuple(stride), padding),
        _NORMS[axes](width, eps=1e-5, affine=True),
        nn.LeakyReLU(_SLOPE, inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    """Draw weights by He's rule for the slope; biases are zero."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
