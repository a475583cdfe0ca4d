"""Residual networks (He et al., CVPR 2016): torchvision's, for small images and few channels.

The ``large`` stem is the paper's for ImageNet: a 7 x 7 convolution of stride 2 and max pooling,
which leave a quarter of the resolution. The ``small`` one is its CIFAR network's: a 3 x 3
convolution of stride 1, for images of about 32 pixels.

The ``sequential`` ones are flat: every convolution, norm and ReLU is a layer, and a block's input
travels to its sum as a skip connection, so that a pipeline may cut them anywhere. No layer
overwrites its input.
"""

import math
from collections import OrderedDict
from collections.abc import Generator
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from raykb.later import Later
from raykb.parts.backbone import LayeredClassifier
from raykb.parts.skip import Namespace, Skippable, pop, skippable, stash

if TYPE_CHECKING:
    from raykb.models.residual_classifier import ResidualClassifier

residual = Later("raykb.models.residual_classifier")
STEMS = ("small", "large")
Layers = OrderedDict[str, nn.Module]


def resnet18(
    classes: int, channels: int = 3, *, stem: str = "small", zero_init_residual: bool = False
) -> "ResidualClassifier":
    """Return ResNet-18, from (N, channels, H, W) to logits (N, classes).

    Args:
        classes: number of classes.
        channels: of the images.
        stem: ``small`` for images of about 32 pixels, ``large`` for 224.
        zero_init_residual: start every block as the identity (Goyal et al., 2017).
    """
    network = residual.ResidualClassifier(
        residual.BasicBlock,
        [2, 2, 2, 2],
        num_classes=classes,
        zero_init_residual=zero_init_residual,
    )
    return _with_stem(network, channels, stem)


def resnet50(
    classes: int, channels: int = 3, *, stem: str = "large", zero_init_residual: bool = False
) -> "ResidualClassifier":
    """Return ResNet-50; arguments as of :func:`resnet18`."""
    network = residual.ResidualClassifier(
        residual.Bottleneck,
        [3, 4, 6, 3],
        num_classes=classes,
        zero_init_residual=zero_init_residual,
    )
    return _with_stem(network, channels, stem)


def _with_stem(network: "ResidualClassifier", channels: int, stem: str) -> "ResidualClassifier":
    if stem not in STEMS:
        raise ValueError(f"stem={stem!r}: must be one of {STEMS}; 'small' for about 32 pixels")
    if stem == "small":
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


class Convolution(nn.Conv2d):
    """A convolution without bias, started as in the paper: He's normal over the fan-out."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


@skippable(stash=["identity"])
class Keep(nn.Module):
    """Leave a block's input for its end and pass it on."""

    def forward(self, x: Tensor) -> Generator[stash, None, Tensor]:
        """Return the input."""
        yield stash("identity", x)
        return x


@skippable(pop=["identity"])
class Add(nn.Module):
    """Add a block's input, projected to (N, outputs, H / stride, W / stride) where that differs."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                Convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Generator[pop, Tensor, Tensor]:
        """Return the sum."""
        identity = yield pop("identity")
        total: Tensor = x + self.downsample(identity)
        return total


def resnet50_sequential(
    classes: int = 1000, channels: int = 3, *, stem: str = "large"
) -> LayeredClassifier:
    """Return ResNet-50 in 183 layers; as :func:`resnet101_sequential`."""
    return _bottlenecks((3, 4, 6, 3), classes, channels, stem)


def resnet101_sequential(
    classes: int = 1000, channels: int = 3, *, stem: str = "large"
) -> LayeredClassifier:
    """Return ResNet-101 in 370 layers, from (N, channels, H, W) to logits (N, classes).

    It computes what torchvision's does, and has its parameters and buffers in the same order.

    Args:
        classes: number of classes.
        channels: of the images.
        stem: ``small`` for images of about 32 pixels, ``large`` for 224.
    """
    return _bottlenecks((3, 4, 23, 3), classes, channels, stem)


def small_resnet_sequential(
    classes: int, channels: int = 3, *, width: int = 16, dropout: float = 0.1
) -> LayeredClassifier:
    """Return three blocks of two convolutions in 31 layers, for images of about 28 pixels.

    From (N, channels, H, W) to logits (N, classes). The first convolution halves the resolution,
    as the last two blocks do; training on 1000 grey images of 28 pixels takes about 0.3 s on one
    core. Half of the work is before the middle block's second convolution, so that two stages of
    equal work have a skip between. 77754 parameters with 10 classes and one channel.

    Args:
        classes: number of classes.
        channels: of the images.
        width: channels of the first convolution; the last has four times as many.
        dropout: share of the features dropped before the classifier.
    """
    widths = (width, width, 2 * width, 4 * width)
    network = _unit("stem", channels, width, 3, stride=2)
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        stride = 2 if index else 1
        network |= _block(f"block{index}", inputs, [(outputs, 3, stride), (outputs, 3, 1)])
    network |= _head(widths[-1], classes, dropout)
    return LayeredClassifier(network)


def _bottlenecks(
    blocks: tuple[int, int, int, int], classes: int, channels: int, stem: str
) -> LayeredClassifier:
    if stem not in STEMS:
        raise ValueError(f"stem={stem!r}: must be one of {STEMS}; 'small' for about 32 pixels")
    small = stem == "small"
    network = _unit("stem", channels, 64, 3 if small else 7, stride=1 if small else 2)
    network["pool"] = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
    inputs = 64
    for group, count in enumerate(blocks):
        width = 64 * 2**group
        for index in range(count):
            stride = 2 if group and not index else 1
            name = f"layer{group + 1}_{index}"
            network |= _block(name, inputs, [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)])
            inputs = 4 * width
    network |= _head(inputs, classes)
    return LayeredClassifier(network)


def _block(name: str, inputs: int, convolutions: list[tuple[int, int, int]]) -> Layers:
    """Return a residual block; each convolution has its outputs, its kernel and its stride."""
    own = Namespace(name)
    layers = Layers({f"{name}_keep": cast(Skippable, Keep()).isolate(own)})
    before = inputs
    for index, (outputs, kernel, stride) in enumerate(convolutions):
        layers |= _unit(f"{name}_{index + 1}", before, outputs, kernel, stride)
        before = outputs
    layers.popitem()  # the last ReLU comes after the sum
    total = cast(Skippable, Add(inputs, before, math.prod(stride for _, _, stride in convolutions)))
    layers[f"{name}_add"] = total.isolate(own)
    layers[f"{name}_relu"] = nn.ReLU()
    return layers


def _unit(name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> Layers:
    return Layers(
        {
            f"{name}_conv": Convolution(inputs, outputs, kernel, stride),
            f"{name}_norm": nn.BatchNorm2d(outputs),
            f"{name}_relu": nn.ReLU(),
        }
    )


def _head(inputs: int, classes: int, dropout: float | None = None) -> Layers:
    layers = Layers(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    if dropout is not None:
        layers["dropout"] = nn.Dropout(dropout)
    layers["linear"] = nn.Linear(inputs, classes)
    return layers
