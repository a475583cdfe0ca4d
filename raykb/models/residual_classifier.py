"""torchvision's residual network in parts."""

from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

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

    def maps(self, images: Tensor) -> Tensor:
        """Return the last maps (N, width, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Return the maps' means, (N, width)."""
        features: Tensor = self.avgpool(self.maps(images)).flatten(1)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, classes) of features."""
        logits: Tensor = self.fc(features)
        return logits
