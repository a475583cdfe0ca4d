"""EfficientNet-B0 whose classifier sees features of four levels beside the last ones.

Kim, Kim, Kim, "Learning Loss for Test-Time Augmentation", NeurIPS 2020, arXiv 2010.11422, after its
official code: what is told of an image's noise and blur is in the early layers.

    blocks 1, 3, 5, 11 ─▶ mean over places ─▶ linear, SiLU (24, 40, 80, 192) ─┐
    last layer         ─▶ mean over places (1280) ────────────────────────────┴─▶ 1616 ─▶ classes

Departures: the weights are torchvision's form of the network, drawn, not those of ImageNet; levels
are dropped out as their features are, not as whole connections.
"""

from typing import Any

import torch
from torch import Tensor, nn

from raykb.later import Later

torchvision = Later("torchvision")
_LEVELS = {2: 24, 3: 40, 4: 80, 6: 192}  # stage, and channels of its first block
_LAST = 1280


class MultiLevelEfficientNet(nn.Module):
    """Classifier of thumbnails, from (N, channels, H, W) to logits (N, classes).

    Args:
        classes: number of classes.
        channels: of the images.
        dropout: of the features before the classifier.
        drop_connect: of the residual branches of the last block; earlier ones have less.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        *,
        dropout: float = 0.3,
        drop_connect: float = 0.2,
    ) -> None:
        super().__init__()
        made: Any = torchvision.models.efficientnet_b0(stochastic_depth_prob=drop_connect)
        self.stages: nn.Sequential = made.features
        if channels != 3:
            self.stages[0][0] = nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False)
        self.levels = nn.ModuleDict(
            {
                str(stage): nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout))
                for stage, width in _LEVELS.items()
            }
        )
        self.width = sum(_LEVELS.values()) + _LAST
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.width, classes))

    def features(self, images: Tensor) -> Tensor:
        """Return features (N, width) of all levels."""
        found, maps = [], images
        for number, stage in enumerate(self.stages):
            if number not in _LEVELS:
                maps = stage(maps)
                continue
            for place, block in enumerate(stage.children()):
                maps = block(maps)
                if not place:
                    found.append(self.levels[str(number)](maps.mean((2, 3))))
        return torch.cat([*found, maps.mean((2, 3))], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
