"""Layers are found in networks of any kind, in their order, each parameter once."""

import itertools

import pytest
import torch
from torch import nn

from raykb.engine.layers import layered_groups, layers, parameter_groups


class Block(nn.Module):
    """As a residual block: it has a sequence inside."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 2, 3)
        self.shortcut = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.stage1 = nn.Sequential(Block(), Block())
        self.stage2 = nn.ModuleList([Block()])
        self.classifier = nn.Linear(2, 3)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 4, 2))
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.norm = nn.LayerNorm(2)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.token = nn.Conv2d(1, 2, 3), nn.Parameter(torch.zeros(1, 1, 2))
        self.encoder = Encoder()
        self.heads = nn.Sequential(nn.Linear(2, 3))


def plain():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (plain(), ["0 1", "3"]),
        (Residual(), ["stem norm", "stage1.0", "stage1.1", "stage2.0", "classifier"]),
        (
            Transformer(),
            [
                "token patches encoder.positions",
                "encoder.layers.0",
                "encoder.layers.1 encoder.norm",
                "heads.0",
            ],
        ),
    ],
    ids=["layers one after another", "residual", "transformer"],
)
def test_layers_are_the_members_of_sequences_and_what_stands_between_them(network, wanted):
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [[names[id(parameter)] for parameter in layer] for layer in layers(network)]
    assert sorted(itertools.chain(*found)) == sorted(names.values())
    for layer, own in zip(found, wanted, strict=True):
        prefixes = tuple(own.split())
        assert all(name.startswith(prefixes) for name in layer), layer
        assert all(any(name.startswith(prefix) for name in layer) for prefix in prefixes), layer


def test_the_last_layer_has_the_rate_and_each_other_a_share_of_the_nexts():
    network = Residual()
    groups = layered_groups(network, 0.3, 8.0, 0.5)
    assert [group["lr"] for group in groups] == [0.5, 0.5, 1, 1, 2, 2, 4, 4, 8, 8]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0] * 5
    for decayed, kept in zip(groups[::2], groups[1::2], strict=True):
        assert all(p.ndim > 1 for p in decayed["params"])
        assert all(p.ndim <= 1 for p in kept["params"])
    found = [p for group in groups for p in group["params"]]
    assert {id(p) for p in found} == {id(p) for p in network.parameters()}


def test_what_is_not_trained_is_no_layer():
    network = plain()
    network[0].requires_grad_(False)
    assert [len(layer) for layer in layers(network)] == [2, 2]
    network[1].requires_grad_(False)
    assert [len(layer) for layer in layers(network)] == [2]


def test_norms_and_biases_are_not_decayed():
    model = plain()
    model[3].weight.requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.3)
    assert [p.shape for p in decayed["params"]] == [model[0].weight.shape]
    assert len(kept["params"]) == 4
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
