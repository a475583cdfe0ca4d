"""A classifier of images or short videos of any number of channels, on any backbone of the house.

Baek, Kim, Kim, Lim, "AutoCLINT", 2020, arXiv:2005.04373, and its official code.

    x  = stem((x - 1/2) / (1/4))              1 channel: copied; others than 3: 3x3 convolution, BN
    h  = backbone features of each frame      (N, T, width)
    h  = mean_T (h + relu(BN(conv_5(h))))     of videos alone
    y  = W h / tau                            W without bias, Xavier-uniform
"""

import torch
from torch import Tensor, nn

from raykb.parts.backbone import Backbone, require


class AnytimeNetwork(nn.Module):
    """From (N, T, channels, H, W) in [0, 1] to logits (N, classes).

    Args:
        backbone: takes 3 channels; what it puts on its features is not used.
        classes: number of classes.
        channels: of the frames.
        video: whether T is above 1: a convolution over time comes before the mean.
        temperature: tau.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        classes: int,
        channels: int,
        video: bool = False,
        temperature: float = 8.0,
    ) -> None:
        super().__init__()
        width = require(backbone, Backbone, "the any-time game").width
        self.backbone = backbone
        self.temperature = temperature
        self.copies = 3 if channels == 1 else 1
        self.stem: nn.Module = nn.Identity()
        if channels not in (1, 3):
            self.stem = nn.Sequential(
                nn.Conv2d(channels, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
            )
        self.temporal = nn.Sequential()
        if video:
            self.temporal.extend(
                [nn.Conv1d(width, width, 5, padding=2, bias=False), nn.BatchNorm1d(width)]
            )
        self.output = nn.Linear(width, classes, bias=False)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, examples: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        frames = examples.flatten(0, 1).sub(0.5).div(0.25)  # (N T, channels, H, W)
        frames = self.stem(frames.repeat(1, self.copies, 1, 1))
        features = self.backbone.features(frames)  # type: ignore[operator]
        features = features.unflatten(0, examples.shape[:2]).transpose(1, 2)  # (N, width, T)
        if len(self.temporal):
            features = features + torch.relu(self.temporal(features))
        logits: Tensor = self.output(features.mean(2)) / self.temperature
        return logits
