"""Networks with maps of each resolution, by name, as an output layer of several scales sees."""

from collections.abc import Callable

from torch import nn

from raykb.models.resnet import resnet18, resnet50
from raykb.models.small_convnet import small_convnet
from raykb.models.wide_resnet import (
    wide_resnet,
    wide_resnet_28_2,
    wide_resnet_28_8,
    wide_resnet_28_10,
    wide_resnet_40_2,
)

STAGED: dict[str, Callable[..., nn.Module]] = {
    "small_convnet": small_convnet,
    "wide_resnet": wide_resnet,
    "wide_resnet_40_2": wide_resnet_40_2,
    "wide_resnet_28_2": wide_resnet_28_2,
    "wide_resnet_28_8": wide_resnet_28_8,
    "wide_resnet_28_10": wide_resnet_28_10,
    "resnet18": resnet18,
    "resnet50": resnet50,
}
