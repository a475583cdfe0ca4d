"""AmoebaNet-D (Real et al., AAAI 2019, arXiv 1802.01548) as a flat sequential model.

A cell makes states 0, 1, ... and concatenates some of them:

    previous ──────── ReLU, 1 x 1, BN ──── state 0 ─┐
    previous-previous ── to the same shape ─ state 1 ─┤ five pairs of operations; each pair's
                                                    └─ sum is a new state: 2, 3, 4, 5, 6

and passes on its output with its own previous, so that a layer takes and returns a pair of
tensors, (N, channels, H, W) each. ``amoebanet_d(L, D)`` is three stem layers, three groups of L / 3
normal cells with a reduction cell between, and the classifier: L + 6 layers. Every reduction cell,
two of which are in the stem, doubles the channels and halves the resolution.

This is the network of GPipe (arXiv 1811.06965) and of torchgpipe (arXiv 2004.09910), whose
parameter counts at 1000 classes it has.

Departures: the normal cell concatenates states 0, 3, 4, 6 as the TensorFlow code does (the paper's
figure: 4, 5, 6). Where torchgpipe's 3 x 3 maximum is an average, here it is a maximum. The last
pooling takes the whole image, not 7 x 7, and the 2 x 2 maximum counts an odd last row, so that
images of any size are accepted. Convolutions start as torch's do.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[Tensor, Tensor]

# Every two entries are summed: (source state, operation).
NORMAL = (
    *((1, "conv1"), (1, "max3")),  # state 2
    *((1, "none"), (0, "conv1x7")),
    *((0, "conv1"), (0, "conv1x7")),
    *((2, "max3"), (2, "none")),
    *((1, "avg3"), (5, "conv1")),  # state 6
)
NORMAL_OUTPUT = (0, 3, 4, 6)
REDUCTION = (
    *((0, "max2"), (0, "max3")),
    *((2, "none"), (1, "conv3")),
    *((2, "conv1x7"), (2, "max3")),
    *((3, "none"), (1, "max2")),
    *((2, "avg3"), (3, "conv1")),
)
REDUCTION_OUTPUT = (4, 5, 6)


class Unit(nn.Sequential):
    """ReLU, convolution that keeps the resolution at stride 1, batch norm.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: (height, width), odd.
        stride: (height, width).
        fresh: whether the input is nobody else's, so that the ReLU may overwrite it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        fresh: bool = False,
    ) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2)
        super().__init__(
            nn.ReLU(inplace=fresh),
            nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(outputs),
        )


class FactorizedReduce(nn.Module):
    """Halve the resolution of (N, inputs, H, W) by two convolutions on grids shifted by a pixel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H / 2, W / 2), rounded up."""
        x = F.relu(x)
        shifted = F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        total: Tensor = self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))
        return total


def _conv3(channels: int, stride: int) -> nn.Module:
    return nn.Sequential(
        Unit(channels, channels // 4),
        Unit(channels // 4, channels // 4, kernel=(3, 3), stride=(stride, stride), fresh=True),
        Unit(channels // 4, channels, fresh=True),
    )


def _conv1x7(channels: int, stride: int) -> nn.Module:
    return nn.Sequential(
        Unit(channels, channels // 4),
        Unit(channels // 4, channels // 4, kernel=(1, 7), stride=(1, stride), fresh=True),
        Unit(channels // 4, channels // 4, kernel=(7, 1), stride=(stride, 1), fresh=True),
        Unit(channels // 4, channels, fresh=True),
    )


# By name: the operation from its number of channels and its stride.
OPERATIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda channels, stride: nn.Identity(),
    "avg3": lambda channels, stride: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    "max2": lambda channels, stride: nn.MaxPool2d(2, stride, ceil_mode=True),
    "max3": lambda channels, stride: nn.MaxPool2d(3, stride, 1),
    "conv1": lambda channels, stride: Unit(channels, channels, stride=(stride, stride)),
    "conv3": _conv3,
    "conv1x7": _conv1x7,
}


class Cell(nn.Module):
    """Map (previous, previous-previous) to (output, previous).

    Args:
        previous: channels of the previous layer's output.
        before: channels of the output before.
        channels: of every state.
        reduction: halve the resolution.
        after_reduction: the output before has twice the resolution of the previous one.
    """

    def __init__(
        self, previous: int, before: int, channels: int, *, reduction: bool, after_reduction: bool
    ) -> None:
        super().__init__()
        self.from_previous = Unit(previous, channels)
        self.from_before: nn.Module = nn.Identity()
        if after_reduction:
            self.from_before = FactorizedReduce(before, channels)
        elif before != channels:
            self.from_before = Unit(before, channels)
        table = REDUCTION if reduction else NORMAL
        self.sources = [source for source, _ in table]
        self.concatenated = REDUCTION_OUTPUT if reduction else NORMAL_OUTPUT
        self.outputs = channels * len(self.concatenated)
        self.operations = nn.ModuleList(
            OPERATIONS[name](channels, 2 if reduction and source < 2 else 1)
            for source, name in table
        )

    def forward(self, inputs: Tensor | Pair) -> Pair:
        """Return (N, outputs, H, W), or half the resolution rounded up, and the previous input."""
        previous, before = (inputs, inputs) if isinstance(inputs, Tensor) else inputs
        states: list[Tensor] = [self.from_previous(previous), self.from_before(before)]
        for first in range(0, len(self.sources), 2):
            left, right = (
                self.operations[index](states[self.sources[index]]) for index in (first, first + 1)
            )
            states.append(left + right)
        return torch.cat([states[index] for index in self.concatenated], dim=1), previous


class Classifier(nn.Module):
    """Map the last cell's pair, over the mean of its output's pixels, to logits (N, classes)."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, inputs: Pair) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.linear(inputs[0].mean(dim=(2, 3)))
        return logits


def amoebanet_d(
    layers: int, filters: int, classes: int = 1000, *, channels: int = 3
) -> nn.Sequential:
    """Return AmoebaNet-D(L, D), from (N, channels, H, W) to logits (N, classes).

    The layers between pass pairs of tensors. 81.5 million parameters for (18, 208), 1.06 billion
    for (36, 544), at 1000 classes.

    Args:
        layers: L, the number of normal cells; divisible by 3.
        filters: D; the first layer has a quarter as many channels.
        classes: number of classes.
        channels: of the images.

    Raises:
        ValueError: L is no multiple of 3, or D is below 8.
    """
    if layers < 3 or layers % 3:
        raise ValueError(
            f"layers={layers}: must be a positive multiple of 3, as 18: the normal cells stand in "
            "three groups of one size"
        )
    if filters < 8:
        raise ValueError(
            f"filters={filters}: must be at least 8, as 208: the stem has a quarter as many "
            "channels, its bottlenecks an eighth"
        )
    width = filters // 4
    network = OrderedDict[str, nn.Module](
        stem1=Unit(channels, width, kernel=(3, 3), stride=(2, 2)),
    )
    previous = before = width
    after_reduction = False
    groups = [[f"group{group}_cell{i}" for i in range(layers // 3)] for group in (1, 2, 3)]
    normal = {name for group in groups for name in group}
    stem = ["stem2", "stem3"]
    for name in [*stem, *groups[0], "reduction1", *groups[1], "reduction2", *groups[2]]:
        reduction = name not in normal
        width *= 2 if reduction else 1
        cell = Cell(previous, before, width, reduction=reduction, after_reduction=after_reduction)
        network[name] = cell
        before, previous, after_reduction = previous, cell.outputs, reduction
    network["classifier"] = Classifier(previous, classes)
    return nn.Sequential(network)
