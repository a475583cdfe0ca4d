"""Wide residual networks (Zagoruyko, Komodakis, BMVC 2016, arXiv 1605.07146).

WRN-d-k has 3 groups of (d - 4) / 6 blocks of two 3 x 3 convolutions, 16k, 32k and 64k channels
wide; groups two and three halve the resolution. Batch norm and ReLU come before each convolution.

Departures: as in Fast AutoAugment's official code, a block strides in its *second* convolution,
a projecting shortcut takes the block's input as it is, and convolutions have biases (paper: the
first convolution, after the first norm and ReLU, none). That code also sets the batch norm's
momentum to 0.9, so that the running statistics follow nearly the last batch alone; here it is
torch's 0.1 unless ``bn_momentum`` says otherwise. Convolutions start as in the paper's code, from
He's normal distribution over the fan-out, biases at zero.

WRN-28-2 and WRN-28-8 are the networks of semi-supervised learning, with leaky ReLU of slope 0.1 as
FixMatch has; stride, shortcuts and biases are as above.
"""

from itertools import pairwise

from torch import Tensor, nn

from raykb.parts.backbone import LayeredClassifier


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution with bias that keeps the resolution at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


class WideBlock(nn.Module):
    """Add to (N, inputs, H, W) what two pre-activated convolutions make of it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        dropout: float,
        bn_momentum: float,
        negative_slope: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs, momentum=bn_momentum),
            _activation(negative_slope),
            conv3x3(inputs, outputs),
            nn.Dropout(dropout),
            nn.BatchNorm2d(outputs, momentum=bn_momentum),
            _activation(negative_slope),
            conv3x3(outputs, outputs, stride),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H / stride, W / stride)."""
        total: Tensor = self.residual(x) + self.shortcut(x)
        return total


def _activation(negative_slope: float) -> nn.Module:
    if not negative_slope:
        return nn.ReLU(inplace=True)
    return nn.LeakyReLU(negative_slope, inplace=True)


def wide_resnet(
    classes: int,
    channels: int = 3,
    *,
    depth: int,
    width: int,
    dropout: float = 0.0,
    bn_momentum: float = 0.1,
    negative_slope: float = 0.0,
) -> LayeredClassifier:
    """Return WRN-``depth``-``width``, from (N, channels, H, W) to logits (N, classes).

    Args:
        classes: number of classes.
        channels: of the images.
        depth: 6n + 4: 16, 22, 28, 34, 40, ...
        width: factor k of the channels.
        dropout: share of activations dropped between a block's convolutions.
        bn_momentum: weight of the newest batch in the running statistics, torch's convention.
        negative_slope: of the leaky ReLU; 0 for ReLU.

    Raises:
        ValueError: there is no such depth.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1 or width < 1:
        raise ValueError(
            f"depth={depth}, width={width}: depth must be 6n + 4 with n >= 1 (as 28 or 40), "
            "width at least 1"
        )
    sizes = [16, 16 * width, 32 * width, 64 * width]
    network = LayeredClassifier(conv3x3(channels, sizes[0]))
    for group, (inputs, outputs) in enumerate(pairwise(sizes)):
        for block in range(blocks):
            network.append(
                WideBlock(
                    outputs if block else inputs,
                    outputs,
                    stride=2 if group and not block else 1,
                    dropout=dropout,
                    bn_momentum=bn_momentum,
                    negative_slope=negative_slope,
                )
            )
    network.extend(
        [
            nn.BatchNorm2d(sizes[-1], momentum=bn_momentum),
            _activation(negative_slope),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(sizes[-1], classes),
        ]
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def wide_resnet_40_2(
    classes: int, channels: int = 3, *, dropout: float = 0.0, bn_momentum: float = 0.1
) -> LayeredClassifier:
    """Return WRN-40-2 (2.25 million parameters); arguments as of :func:`wide_resnet`."""
    return wide_resnet(
        classes, channels, depth=40, width=2, dropout=dropout, bn_momentum=bn_momentum
    )


def wide_resnet_28_10(
    classes: int, channels: int = 3, *, dropout: float = 0.0, bn_momentum: float = 0.1
) -> LayeredClassifier:
    """Return WRN-28-10 (36.5 million parameters); arguments as of :func:`wide_resnet`."""
    return wide_resnet(
        classes, channels, depth=28, width=10, dropout=dropout, bn_momentum=bn_momentum
    )


def wide_resnet_28_2(
    classes: int,
    channels: int = 3,
    *,
    dropout: float = 0.0,
    bn_momentum: float = 0.1,
    negative_slope: float = 0.1,
) -> LayeredClassifier:
    """Return WRN-28-2 (1.47 million parameters); arguments as of :func:`wide_resnet`."""
    return wide_resnet(
        classes,
        channels,
        depth=28,
        width=2,
        dropout=dropout,
        bn_momentum=bn_momentum,
        negative_slope=negative_slope,
    )


def wide_resnet_28_8(
    classes: int,
    channels: int = 3,
    *,
    dropout: float = 0.0,
    bn_momentum: float = 0.1,
    negative_slope: float = 0.1,
) -> LayeredClassifier:
    """Return WRN-28-8 (23.4 million parameters); arguments as of :func:`wide_resnet`."""
    return wide_resnet(
        classes,
        channels,
        depth=28,
        width=8,
        dropout=dropout,
        bn_momentum=bn_momentum,
        negative_slope=negative_slope,
    )
