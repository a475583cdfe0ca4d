"""Shapes at the boundaries, found without running the real model."""

import pytest
import torch
from torch import nn

from raykb.gpipe.partition import split
from raykb.gpipe.probe import Spec, probe
from raykb.parts.skip import pop, skippable, stash


@skippable(stash=["mask", "nothing", "wide"])
class Leave(nn.Module):
    def forward(self, x):
        yield stash("mask", x > 0)
        yield stash("nothing", None)
        yield stash("wide", x.double())
        return x, x.long()


@skippable(pop=["mask", "nothing", "wide"])
class Take(nn.Module):
    def forward(self, parts):
        mask = yield pop("mask")
        yield pop("nothing")
        wide = yield pop("wide")
        return parts[0] * mask * wide.float()


class Same(nn.Module):
    def forward(self, parts):
        return parts


def parts_of(*layers, balance):
    with torch.device("meta"):
        model = nn.Sequential(*(make() for make in layers))
    return split(list(model.named_children()), balance)


def test_values_and_skips_have_their_shapes_and_types():
    parts = parts_of(lambda: nn.Linear(3, 5), Leave, Same, Take, balance=[2, 1, 1])
    found = probe(parts, [Spec((2, 3), torch.float32)])
    pair = (Spec((2, 5), torch.float32), Spec((2, 5), torch.int64))
    assert found.values == [(Spec((2, 3), torch.float32),), pair, pair, pair[:1]]
    assert found.bare == [True, False, False, True]
    assert found.overwrites == [False] * 3
    assert {name: spec for (_, name), spec in found.skips.items()} == {
        "mask": Spec((2, 5), torch.bool),
        "nothing": None,
        "wide": Spec((2, 5), torch.float64),
    }
    assert found.skip((None, "mask")).bytes == 10
    with pytest.raises(KeyError, match="skip 'nothing' is None"):
        found.skip((None, "nothing"))


def test_under_autocast_floats_travel_in_its_type_and_the_output_stays():
    parts = parts_of(lambda: nn.Linear(3, 5), Leave, Same, Take, balance=[2, 1, 1])
    found = probe(parts, [Spec((2, 3), torch.float32)], travel=torch.bfloat16)
    assert [spec.dtype for spec in found.values[1]] == [torch.bfloat16, torch.int64]
    types = {name: spec and spec.dtype for (_, name), spec in found.skips.items()}
    assert types == {"mask": torch.bool, "nothing": None, "wide": torch.bfloat16}
    assert found.values[0] == (Spec((2, 3), torch.float32),)


def test_what_overwrites_its_input_is_told():
    parts = parts_of(
        lambda: nn.Linear(3, 3), lambda: nn.ReLU(inplace=True), nn.ReLU, balance=[1, 1, 1]
    )
    found = probe(parts, [Spec((2, 3), torch.float32)])
    assert found.overwrites == [False, True, False]


class Looking(nn.Module):
    """Needs numbers; counts how often it had some."""

    seen = 0

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if float(x.sum().item()) == 0:
            Looking.seen += 1
        return self.norm(x) if int(self.steps) == 0 else x[:0]


def test_a_layer_that_needs_numbers_gets_zeros_and_weights_of_its_own():
    parts = parts_of(Looking, lambda: nn.Linear(3, 2), balance=[1, 1])
    Looking.seen = 0
    before = torch.get_rng_state()
    found = probe(parts, [Spec((2, 3), torch.float32)])
    assert [specs[0].shape for specs in found.values] == [(2, 3), (2, 3), (2, 2)]
    assert Looking.seen == 1
    assert all(tensor.is_meta for part in parts for tensor in part.state_dict().values())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tuple_of_one_stays_one():
    parts = parts_of(Same, Same, balance=[1, 1])
    found = probe(parts, [Spec((4,), torch.int64)], bare=False)
    assert found.bare == [False] * 3
    assert found.values == [(Spec((4,), torch.int64),)] * 3


def test_the_stage_that_does_not_fit_is_named_with_what_it_was_given():
    parts = parts_of(lambda: nn.Linear(3, 5), lambda: nn.Linear(4, 2), balance=[1, 1])
    said = r"stage 1, from layer '1' on, does not accept .*\(2, 5\) torch.float32: RuntimeError"
    with pytest.raises(ValueError, match=said) as caught:
        probe(parts, [Spec((2, 3), torch.float32)])
    assert isinstance(caught.value.__cause__, RuntimeError)
