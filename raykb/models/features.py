"""A classifier's features beside its logits, whatever network it is.

The features of a classifier are what its last linear layer takes: for most of ``MODELS`` the
globally pooled map. They are caught on their way there, so networks need not know of it.
"""

from typing import Any

from torch import Tensor, nn


def classifier_of(network: nn.Module) -> nn.Linear:
    """Return the last linear layer of a network, which makes logits of features.

    Raises:
        ValueError: there is none.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            f"network: {type(network).__name__} has no linear layer, whose input would be its "
            "features; take a classifier that ends in one"
        )
    return layers[-1]


def logits_and_features(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, classes) of images (N, C, H, W), and the features (N, d) they are made of.

    Raises:
        ValueError: the network has no linear layer.
    """
    caught: list[Tensor] = []

    def catch(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])

    with classifier_of(network).register_forward_pre_hook(catch):
        logits: Tensor = network(images)
    return logits, caught[0]


class WithProjection(nn.Module):
    """A classifier with a head on its features, which are trained together.

    Args:
        classifier: from (N, C, H, W) to logits.
        head: from features (N, d) to projections.
    """

    def __init__(self, classifier: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, classes) and projections."""
        logits, features = logits_and_features(self.classifier, images)
        return logits, self.head(features)
