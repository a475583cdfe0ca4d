"""Residual networks (He et al., CVPR 2016): torchvision's, for small images and few channels.

The ``large`` stem is the paper's for ImageNet: a 7 x 7 convolution of stride 2 and max pooling,
which leave a quarter of the resolution. The ``small`` one is its CIFAR network's: a 3 x 3
convolution of stride 1, for images of about 32 pixels.
"""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

STEMS = ("small", "large")


def resnet18(
    classes: int, channels: int = 3, *, stem: str = "small", zero_init_residual: bool = False
) -> ResNet:
    """Return ResNet-18, from (N, channels, H, W) to logits (N, classes).

    Args:
        classes: number of classes.
        channels: of the images.
        stem: ``small`` for images of about 32 pixels, ``large`` for 224.
        zero_init_residual: start every block as the identity (Goyal et al., 2017).
    """
    network = ResNet(
        BasicBlock, [2, 2, 2, 2], num_classes=classes, zero_init_residual=zero_init_residual
    )
    return _with_stem(network, channels, stem)


def resnet50(
    classes: int, channels: int = 3, *, stem: str = "large", zero_init_residual: bool = False
) -> ResNet:
    """Return ResNet-50; arguments as of :func:`resnet18`."""
    network = ResNet(
        Bottleneck, [3, 4, 6, 3], num_classes=classes, zero_init_residual=zero_init_residual
    )
    return _with_stem(network, channels, stem)


def _with_stem(network: ResNet, channels: int, stem: str) -> ResNet:
    if stem not in STEMS:
        raise ValueError(f"stem={stem!r}: must be one of {STEMS}; 'small' for about 32 pixels")
    if stem == "small":
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
