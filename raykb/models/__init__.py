"""Networks by name; each is built from a number of classes and a number of channels.

``SEQUENTIALS`` are those that a pipeline may cut between any two layers. The U-Net is not among
them: it is no classifier. ``SEGMENTERS`` classify voxels, and are built from the same two numbers.
So are ``PREDICTORS``, which say of a thumbnail what is best done with the image.
"""

from collections.abc import Callable

from torch import nn

from raykb.models.amoebanet import amoebanet_d
from raykb.models.loss_predictor import MultiLevelEfficientNet
from raykb.models.planned_unet import PlannedUNet, unet_3d
from raykb.models.resnet import (
    resnet50_sequential,
    resnet101_sequential,
    small_resnet_sequential,
)
from raykb.models.small_convnet import small_convnet
from raykb.models.spatially_attentive import spatially_attentive
from raykb.models.staged import STAGED
from raykb.models.vilt import ViLT, vilt_b_32
from raykb.models.vit import VisionTransformer, vit_b_16, vit_small_patch16, vit_tiny_patch4

MODELS: dict[str, Callable[..., nn.Module]] = {
    **STAGED,
    "spatially_attentive": spatially_attentive,
    "vit": VisionTransformer,
    "vit_tiny_patch4": vit_tiny_patch4,
    "vit_small_patch16": vit_small_patch16,
    "vit_b_16": vit_b_16,
}

IMAGE_TEXT: dict[str, Callable[..., nn.Module]] = {"vilt": ViLT, "vilt_b_32": vilt_b_32}

SEQUENTIALS: dict[str, Callable[..., nn.Sequential]] = {
    "small_resnet_sequential": small_resnet_sequential,
    "small_convnet": small_convnet,
    "resnet50_sequential": resnet50_sequential,
    "resnet101_sequential": resnet101_sequential,
    "amoebanet_d": amoebanet_d,
}

SEGMENTERS: dict[str, Callable[..., nn.Module]] = {
    "planned_unet": PlannedUNet,
    "unet_3d": unet_3d,
}

PREDICTORS: dict[str, Callable[..., nn.Module]] = {
    "small_convnet": small_convnet,
    "multi_level_efficientnet": MultiLevelEfficientNet,
}
