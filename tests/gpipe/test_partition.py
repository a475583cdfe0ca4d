"""Parts of a sequential model: names, layers that come again, what cannot be cut."""

import pytest
import torch
from torch import nn

from raykb.gpipe.partition import (
    Partition,
    balance_problems,
    cut,
    flatten,
    name_problems,
    shared_parameters,
    split,
)
from raykb.parts.skip import pop, skippable, stash


def nested():
    return nn.Sequential(
        nn.Linear(3, 4),
        nn.Sequential(nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
        nn.Linear(4, 2),
    )


def test_nested_sequentials_are_opened_under_the_names_of_the_state_dict():
    model = nested()
    assert [name for name, _ in flatten(model)] == ["0", "1.0", "1.1.0", "1.1.1", "2"]
    for balance in ([1, 4], [2, 1, 2], [3, 2], [1, 1, 1, 1, 1]):
        parts = split(flatten(model), balance)
        states = [part.state_dict() for part in parts]
        assert {n: id(v) for s in states for n, v in s.items()}.keys() == model.state_dict().keys()
        value = x = torch.randn(5, 3)
        for part in parts:
            value, left = part(value, {})
            assert left == {}
        assert torch.equal(value, model(x))


def test_a_layer_that_stands_in_several_places_runs_in_each():
    relu, norm = nn.Softplus(), nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), relu, norm, nn.Linear(4, 4), relu, norm, relu)
    layers = flatten(model)
    assert [name for name, _ in layers] == list("0123456")
    part = Partition(layers)
    assert part.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(5, 4)
    assert torch.equal(part.eval()(x, {})[0], model.eval()(x))


def test_any_name_of_a_child_will_do():
    names = ("layers", "stashed", "popped", "_random", "state_dict", "a.layers", "a.stashed")
    part = Partition([(name, nn.Linear(2, 2)) for name in names])
    assert set(part.state_dict()) == {f"{n}.{k}" for n in names for k in ("weight", "bias")}
    assert part.popped == part.stashed == []
    assert len(part.train().layers) == len(names)
    assert part(torch.zeros(1, 2), {})[0].shape == (1, 2)


def test_parameters_and_buffers_of_several_stages_are_named():
    tied, norm = nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3, affine=False)
    other = nn.Linear(3, 3)
    other.weight = tied.weight
    layers = [("a", tied), ("n", norm), ("b", other), ("m", norm)]
    found = shared_parameters(cut(layers, [2, 2]))
    assert found[0].startswith("parameter a.weight = parameter b.weight: shared by stages [0, 1]")
    assert "cut so that both layers are in one stage, or untie them" in found[0]
    assert [problem.split(":")[0] for problem in found[1:]] == [
        f"buffer n.{name} = buffer m.{name}"
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    assert shared_parameters(cut(layers, [4])) == []


@pytest.mark.parametrize(
    ("balance", "problems"),
    [
        ([2, 1], []),
        ([2, 2], [r"sums to 4, must sum to the model's 3 layers; see raykb.gpipe.balance"]),
        ([3, 0], ["all numbers of layers must be positive integers; leave out the stages"]),
        ([4, -2], ["positive", "sums to 2"]),
        ([1.5, 1.5], ["positive integers"]),
        ([], ["sums to 0"]),
    ],
)
def test_a_balance_that_does_not_fit_says_how(balance, problems):
    found = balance_problems(balance, 3)
    assert len(found) == len(problems)
    assert all(said in problem for said, problem in zip(problems, found, strict=True))


def test_names_that_cannot_be_told_apart_are_refused_together():
    names = ["a", "a", "b.c", "b", "d..e", "f"]
    found = name_problems([(name, nn.ReLU()) for name in names])
    assert found == [
        "layers: name 'a' is given 2 times, must be given once",
        "layers: name 'b.c' is inside layer 'b'; rename one of them",
        "layers: name 'd..e', must not have an empty part between dots",
    ]
    with pytest.raises(ValueError, match=r"'a' is given 2 times(.|\n)*sums to 2"):
        split([(name, nn.ReLU()) for name in names], [1, 1])


class Number(nn.Module):
    def forward(self, x):
        return float(x.sum())


class Some(nn.Module):
    def forward(self, x):
        return x, None


@pytest.mark.parametrize(
    ("layer", "kind"), [(Number(), "float"), (Some(), "a tuple of Tensor, NoneType")]
)
def test_only_tensors_leave_a_part(layer, kind):
    with pytest.raises(TypeError, match=f"layer 'x' returned {kind}; the last layer of a part"):
        Partition([("x", layer)])(torch.zeros(2), {})


@skippable(stash=["left"])
class Leave(nn.Module):
    def forward(self, x):
        yield stash("left", x)
        return x + 1


@skippable(pop=["left"])
class Take(nn.Module):
    def forward(self, x):
        left = yield pop("left")
        return x * left


class Block(nn.Module):
    """Skippable layers inside a layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_skips_cross_parts_and_are_not_taken_out_of_what_is_given():
    x = torch.tensor([2.0, 3.0])
    first, second = split([("0", Block(Leave())), ("1", Take())], [1, 1])
    value, left = first(x, {})
    assert (first.stashed, second.popped) == ([(None, "left")], [(None, "left")])
    for _ in range(2):  # as recomputation does
        output, rest = second(value, left)
        assert torch.equal(output, (x + 1) * x)
        assert rest == {}
        assert list(left) == [(None, "left")]
