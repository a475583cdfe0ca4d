"""Stages that fill their layers by themselves: equal however a model is cut, or refused."""

import pytest
import torch
from torch import nn

from raykb.gpipe.materialise import materialise, uninitialisable
from raykb.gpipe.partition import Partition, cut, flatten


def model():
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4, affine=False),
            nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8)),
            nn.TransformerEncoderLayer(8, 2, 16),
            nn.LSTM(8, 8),
            nn.Embedding(5, 8, padding_idx=1),
        )


def states(balance, seed):
    parts = cut(flatten(model()), balance)
    filled = [materialise(Partition(part), seed) for part in parts]
    return {name: value for part in filled for name, value in part.state_dict().items()}


def test_weights_are_a_function_of_seed_and_name():
    whole = states([8], 3)
    assert whole.keys() == model().state_dict().keys()
    assert all(not value.is_meta and bool(value.isfinite().all()) for value in whole.values())
    for balance in ([8], [1, 7], [2, 3, 3], [1] * 8):
        again = states(balance, 3)
        assert all(torch.equal(again[name], value) for name, value in whole.items())
    other = states([8], 4)
    assert not torch.equal(other["0.weight"], whole["0.weight"])
    assert not torch.equal(whole["3.linear1.weight"][:8, :8], whole["3.linear2.weight"][:8, :8])


def test_the_global_generator_stays_where_it_was():
    before = torch.get_rng_state()
    states([8], 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_layers_of_a_part_share_they_share_when_filled():
    with torch.device("meta"):
        first, second, relu = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.PReLU()
        second.weight = first.weight
        layers = flatten(nn.Sequential(first, relu, second, relu))
    part = materialise(Partition(layers), 0)
    assert part[0].weight is part[2].weight
    assert part[1] is part[3]
    assert len(list(part.parameters())) == 3
    assert not part[0].weight.is_meta


def test_layers_with_memory_are_taken_as_they_are():
    real = nn.Linear(2, 2)
    with torch.device("meta"):
        bare = nn.Linear(2, 2)
    part = materialise(Partition([("a", real), ("b", bare)]), 0)
    assert part[0] is real
    assert not part[1].weight.is_meta
    assert bare.weight.is_meta


def test_frozen_layers_stay_frozen():
    with torch.device("meta"):
        layer = nn.Linear(2, 2).requires_grad_(False)
    part = materialise(Partition([("a", layer)]), 0)
    assert not any(parameter.requires_grad for parameter in part.parameters())


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class Masked(nn.Linear):
    """Inherits a reset_parameters that knows nothing of the mask."""

    def __init__(self, kind):
        super().__init__(3, 3)
        mask = {"float": torch.ones(3, 3).tril(), "bool": torch.ones(3) > 0, "int": torch.arange(3)}
        self.register_buffer("mask", mask[kind], persistent=kind != "bool")


class Careful(Masked):
    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "mask"):
            self.mask.data.copy_(torch.ones(3, 3).tril())


def test_modules_that_cannot_start_alone_are_all_named():
    with torch.device("meta"):
        layers = [("a", Bare()), ("b", nn.Linear(2, 2)), ("c", nn.Sequential(nn.ReLU(), Bare()))]
    found = uninitialisable(layers)
    assert [problem.split(" owns")[0] for problem in found] == [
        "layer 'a': Bare",
        "layer 'c': Bare",
    ]
    with pytest.raises(
        ValueError, match=r"layer 'a': Bare(.|\n)*layer 'c': Bare.*give it one that"
    ):
        materialise(Partition(layers), 0)


def test_tensors_that_are_no_parameters_are_named():
    class Shifted(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.mean = torch.full((2,), 0.5)

    with torch.device("meta"):
        layer = Shifted()
    (found,) = uninitialisable([("a", layer)])
    assert found.startswith("layer 'a': Shifted.mean is a tensor without memory")
    assert uninitialisable([("a", Shifted())]) == []


@pytest.mark.parametrize("kind", ["float", "bool", "int"])
def test_a_buffer_that_no_reset_fills_is_named(kind):
    with torch.device("meta"):
        layer = Masked(kind)
    with pytest.raises(ValueError, match="layer 'x': mask not filled by reset_parameters"):
        materialise(Partition([("x", layer)]), 0)


def test_a_buffer_that_is_filled_behind_autograd_counts_as_filled():
    with torch.device("meta"):
        layer = Careful("float")
    part = materialise(Partition([("x", layer)]), 0)
    assert torch.equal(part[0].mask, torch.ones(3, 3).tril())
