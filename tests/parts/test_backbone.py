"""What a network offers to methods, and how one that does not offer it is refused."""

import pytest
import torch
from torch import nn

from raykb.parts.backbone import (
    Backbone,
    LayeredClassifier,
    WithMaps,
    WithPatches,
    WithTokens,
    require,
)


def layers():
    torch.manual_seed(0)
    return LayeredClassifier(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def test_a_layered_classifier_is_its_layers_in_parts():
    network, images = layers(), torch.rand(2, 1, 8, 8)
    plain = nn.Sequential(*network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(network.classify(network.features(images)), plain(images))
    assert network.width == 16
    assert network.features(images).shape == (2, 16)
    assert torch.equal(network.maps(images), plain[:2](images))
    assert network.map_width == 4


def test_a_cut_of_it_has_the_same_layers():
    network = layers()
    assert [type(layer) for layer in network[1:3]] == [nn.ReLU, nn.AdaptiveAvgPool2d]


def test_what_offers_all_that_is_needed_is_returned():
    network = layers()
    assert require(network, Backbone, "a method") is network
    assert require(network, WithMaps, "a method") is network


@pytest.mark.parametrize(
    ("network", "offer", "missing"),
    [
        (nn.Linear(1, 1), Backbone, "classify, features, width"),
        (nn.Linear(1, 1), WithMaps, "classify, features, map_width, maps, width"),
        (layers(), WithTokens, "tokens"),
        (layers(), WithPatches, "channels, depth, embed, encode, patch, positions, tokens"),
    ],
)
def test_what_is_missing_is_named(network, offer, missing):
    name = type(network).__name__
    with pytest.raises(ValueError, match=f"^network: {name} has no {missing}, which saol needs;"):
        require(network, offer, "saol")
