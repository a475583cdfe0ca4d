"""torchvision's residual network in parts."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from raykb.parts.backbone import conv_width

__all__ = ["BasicBlock", "Bottleneck", "ResidualClassifier"]


class ResidualClassifier(ResNet):  # type: ignore[misc]  # torchvision is not typed
    """torchvision's network, in parts that a method can take one of."""

    @property
    def width(self) -> int:
        """Width of the features."""
        return int(self.fc.in_features)

    @property
    def map_width(self) -> int:
        """Channels of the maps."""
        return self.width

    @property
    def stage_widths(self) -> list[int]:
        """Channels of the maps of each stage."""
        return [conv_width([stage]) for stage in self._stages()]

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the maps (N, C, h, w) of each of the four stages."""
        maps, found = self.maxpool(self.relu(self.bn1(self.conv1(images)))), []
        for stage in self._stages():
            maps = stage(maps)
            found.append(maps)
        return found

    def maps(self, images: Tensor) -> Tensor:
        """Return the last maps (N, width, h, w)."""
        return self.stages(images)[-1]

    def pooled(self, maps: Tensor) -> Tensor:
        """Return the means of the last maps, (N, width)."""
        features: Tensor = self.avgpool(maps).flatten(1)
        return features

    def features(self, images: Tensor) -> Tensor:
        """Return the maps' means, (N, width)."""
        return self.pooled(self.maps(images))

    def _stages(self) -> list[nn.Module]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, classes) of features."""
        logits: Tensor = self.fc(features)
        return logits
