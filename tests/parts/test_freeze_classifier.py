"""What logits alone need is kept from a training that has no labels."""

import pytest
import torch
from torch import nn

from raykb.parts.backbone import LayeredClassifier, freeze_classifier


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_logits_alone_need_is_frozen_and_nothing_else(device):
    with torch.device(device):
        network = LayeredClassifier(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )
    network[0].bias.requires_grad_(False)  # stays so
    freeze_classifier(network)
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trained == ["0.weight"]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_without_parts_has_no_classifier_to_freeze():
    with pytest.raises(ValueError, match=r"Linear has no .* which a training without labels needs"):
        freeze_classifier(nn.Linear(2, 2))
