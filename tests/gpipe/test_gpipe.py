"""GPipe as users of the paper's library know it: arguments, attributes, names, refusals."""

import copy
import pickle
import re
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from raykb.gpipe import GPipe
from raykb.gpipe.batchnorm import DeferredBatchNorm
from raykb.gpipe.gpipe import verify_module
from raykb.gpipe.skip import pop, skippable, stash


def linears(count=2):
    return nn.Sequential(*(nn.Linear(1, 1) for _ in range(count)))


def test_arguments_become_lists_an_int_and_a_string():
    class Text:
        def __str__(self):
            return "always"

    model = GPipe(linears(1), (1,), devices=("cpu",), chunks=42.0, checkpoint=Text())
    assert model.balance == [1]
    assert model.devices == [torch.device("cpu")]
    assert (model.chunks, type(model.chunks)) == (42, int)
    assert (model.checkpoint, type(model.checkpoint)) == ("always", str)


def test_balance_may_be_any_iterable_and_devices_be_missing():
    model = GPipe(linears(3), iter([1, 2]))
    assert model.balance == [1, 2]
    assert len(model.devices) == 2
    if not torch.cuda.is_available():
        assert model.devices == [torch.device("cpu")] * 2
    assert (model.chunks, model.checkpoint) == (1, "except_last")


@pytest.mark.parametrize("balance", [[2], [1, 1]])
def test_it_is_a_sequence_of_layers(balance):
    first, second = linears()
    model = GPipe(nn.Sequential(first, second), balance, devices=["cpu", "cpu"])
    assert len(model) == 2
    assert list(model) == [first, second]
    assert model[0] is model[-2] is first
    assert model[1] is model[-1] is second
    with pytest.raises(IndexError):
        model[2]


def test_names_are_those_of_the_model():
    plain = nn.Sequential(OrderedDict(stem=nn.Linear(1, 1), balance=nn.BatchNorm1d(1)))
    names = list(plain.state_dict())
    model = GPipe(plain, [1, 1], devices=["cpu", "cpu"], chunks=2, deferred_batch_norm=True)
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_children()] == ["stem", "balance"]
    assert len(list(model.parameters())) == 4
    assert model.balance == [1, 1]


def test_state_dicts_load_into_the_model_and_from_it():
    plain, other = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    model = GPipe(copy.deepcopy(other), [1, 1], chunks=2, deferred_batch_norm=True)
    x = torch.randn(4, 2)
    model(x)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain.eval()(x), model.eval()(x))
    model.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_layers_are_no_attributes_but_submodules():
    model = GPipe(nn.Sequential(OrderedDict(a=nn.Sequential(nn.Linear(1, 1)))), [1])
    with pytest.raises(AttributeError, match="layer 'a' is no attribute of a GPipe"):
        model.a  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'b'"):
        model.b  # noqa: B018
    assert model.get_submodule("a") is model[0]
    assert model.get_submodule("a.0") is model[0][0]
    assert model.get_submodule("") is model
    assert model.get_parameter("a.0.weight") is model[0][0].weight
    with pytest.raises(AttributeError):
        model.get_submodule("b")


def test_parts_are_sequential_models():
    model = GPipe(linears(3), [2, 1], devices=["cpu", "cpu"]).eval()
    assert isinstance(model.partitions, nn.ModuleList)
    assert all(isinstance(part, nn.Sequential) for part in model.partitions)
    assert torch.equal(model.partitions[0](torch.ones(1)), model[1](model[0](torch.ones(1))))
    assert [list(part) for part in model.partitions] == [[model[0], model[1]], [model[2]]]
    assert not model.partitions[0].training


@pytest.mark.parametrize(
    "exchange",
    [
        lambda model: setattr(model, "0", nn.Linear(1, 1)),
        lambda model: model.add_module("2", nn.Linear(1, 1)),
        lambda model: model.partitions[1].__setitem__(0, nn.Linear(1, 1)),
        nn.SyncBatchNorm.convert_sync_batchnorm,
    ],
    ids=["exchanged", "added", "in a part", "converted"],
)
def test_a_layer_that_would_be_trained_but_never_run_is_refused(exchange):
    model = GPipe(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)), [1, 1])
    exchange(model)
    with pytest.raises(RuntimeError, match="layers of a GPipe were exchanged"):
        model(torch.rand(2, 1))


def test_hooks_of_parts_are_run_with_what_the_part_returns():
    seen = []
    model = GPipe(linears(2), [1, 1], chunks=2)
    model.partitions[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(torch.rand(2, 1))
    assert [output.grad_fn for output in seen] == [None, None]


def test_copies_and_pickles_work_on_their_own():
    model = GPipe(linears(2), [1, 1], chunks=2)
    x = torch.rand(4, 1)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        twin[0].weight.data.zero_()
        assert not torch.equal(twin(x), model(x))
        assert twin.partitions[0][0] is twin[0]


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ([1], "sums to 1, must sum to the model's 2 layers"),
        ([3], "sums to 3, must sum to the model's 2 layers"),
        ([2, 0], "must be positive integers"),
        ([-1, 3], "must be positive integers"),
        (None, "balance is required"),
    ],
)
def test_a_wrong_balance_is_refused_and_the_balancer_named(balance, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        GPipe(linears(2), balance, devices=["cpu"] * 2)
    if "positive" not in message:
        assert "raykb.gpipe.balance" in str(raised.value)


@pytest.mark.parametrize("chunks", [0, -1])
def test_chunks_below_one_are_refused(chunks):
    message = re.escape(f"number of chunks must be positive integer (chunks: {chunks})")
    with pytest.raises(ValueError, match=message):
        GPipe(linears(1), [1], chunks=chunks)


def test_an_unknown_checkpoint_mode_is_refused_in_these_words():
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        GPipe(linears(1), [1], checkpoint="sometimes")
    expected = "checkpoint is not one of 'always', 'except_last', or 'never'"
    assert str(raised.value) == expected


def test_too_few_devices_are_refused_and_extra_ones_dropped():
    with pytest.raises(IndexError, match=r"too few devices .* \(devices: 1, partitions: 2\)"):
        GPipe(linears(), [1, 1], devices=["cpu"])
    model = GPipe(linears(), [1, 1], devices=["cpu", "cpu:0", "cpu"])
    assert model.devices == [torch.device("cpu")] * 2


def test_only_a_sequential_model_is_taken():
    for refuse in (lambda model: GPipe(model, [1]), verify_module):
        with pytest.raises(TypeError, match=r"must be nn\.Sequential .* \(module: ModuleList\)"):
            refuse(nn.ModuleList([nn.Linear(1, 1)]))


def test_layers_that_stand_twice_or_share_parameters_are_refused():
    layer, twin = linears()
    with pytest.raises(
        ValueError, match=r"duplicate children is not supported \(layers: \['0', '1'\]"
    ):
        GPipe(nn.Sequential(layer, layer), [1, 1])
    twin.weight = layer.weight
    message = r"duplicate parameters in distinct children is not .* \(parameters: \['0.weight'\]\)"
    for refuse in (lambda model: GPipe(model, [1, 1]), verify_module):
        with pytest.raises(ValueError, match=message):
            refuse(nn.Sequential(layer, twin))


def test_all_problems_are_told_at_once():
    layer = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="positive") as raised:
        GPipe(nn.Sequential(layer, layer), [0, 5], chunks=0, checkpoint="no")
    told = str(raised.value)
    assert len(told.splitlines()) == 5
    for part in ("positive integers", "sums to 5", "chunks", "checkpoint", "duplicate children"):
        assert part in told


def test_skips_that_do_not_match_are_refused():
    @skippable(stash=["x"])
    class Keep(nn.Module):
        def forward(self, x):
            yield stash("x", x)
            return x

    @skippable(pop=["y"])
    class Add(nn.Module):
        def forward(self, x):
            return x + (yield pop("y"))

    with pytest.raises(TypeError, match="one or more pairs of stash and pop") as raised:
        GPipe(nn.Sequential(Keep(), Add()), [1, 1])
    assert len(re.findall(r"^\* ", str(raised.value), re.MULTILINE)) == 2


@pytest.mark.parametrize(("samples", "chunks"), [(7, 4), (3, 4), (1, 5)])
def test_any_number_of_samples_is_legal_without_a_warning(samples, chunks):
    model = GPipe(linears(), [1, 1], chunks=chunks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(torch.rand(samples, 1)).shape == (samples, 1)


def nodes(output, name):
    """Number of nodes of this name in the graph that made ``output``."""
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return sum(node.name() == name for node in seen)


@pytest.mark.parametrize("samples", [4, 2])
@pytest.mark.parametrize(("mode", "exempt"), [("always", 0), ("except_last", 1), ("never", 9)])
def test_micro_batches_are_checkpointed_as_the_mode_says(mode, exempt, samples):
    # Two samples are two micro-batches: the last of these is exempt, too.
    model = GPipe(linears(1), [1], chunks=4, checkpoint=mode)
    output = model(torch.rand(samples, 1))
    for name in ("CheckpointBackward", "RecomputeBackward"):
        assert nodes(output, name) == max(0, samples - exempt)


@pytest.mark.parametrize("mode", ["always", "except_last", "never"])
def test_one_chunk_accepts_every_mode(mode):
    model = GPipe(linears(), [1, 1], chunks=1, checkpoint=mode)
    output = model(torch.rand(3, 1))
    assert nodes(output, "CheckpointBackward") == 2 * (mode == "always")
    output.sum().backward()
    assert model[0].weight.grad is not None


def test_evaluation_is_not_checkpointed_and_without_gradients_there_is_no_graph():
    model = GPipe(linears(), [1, 1], chunks=2, checkpoint="always")
    x = torch.rand(2, 1, requires_grad=True)
    assert nodes(model.eval()(x), "CheckpointBackward") == 0
    model.train()
    assert nodes(model(x), "CheckpointBackward") == 4
    with torch.no_grad():
        assert model(x).grad_fn is None
    with torch.inference_mode():
        assert model(x).is_inference()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, pair):
        one, other = pair
        return self.first(one), self.second(other)


@pytest.mark.parametrize("mode", ["always", "never"])
def test_pairs_go_in_and_out(mode):
    model = GPipe(nn.Sequential(Pair(), Pair()), [1, 1], chunks=2, checkpoint=mode)
    pair = tuple(torch.rand(4, 1, requires_grad=True) for _ in range(2))
    one, other = model(pair)
    (one.mean() + other.mean()).backward()
    assert all(tensor.grad is not None for tensor in pair)


@pytest.mark.parametrize("mode", ["always", "never"])
def test_a_tuple_of_one_stays_a_tuple(mode):
    class Single(nn.Module):
        def forward(self, single):
            assert isinstance(single, tuple)
            (x,) = single
            return (x * 2,)

    model = GPipe(nn.Sequential(Single(), Single()), [1, 1], chunks=2, checkpoint=mode)
    x = torch.ones(2, requires_grad=True)
    output = model((x,))
    assert isinstance(output, tuple)
    output[0].sum().backward()
    assert x.grad.tolist() == [4, 4]


@pytest.mark.parametrize("mode", ["always", "never"])
def test_integers_pass_between_parts(mode):
    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 2)

        def forward(self, index):
            return self.table(index), index

    class Weigh(nn.Module):
        def forward(self, pair):
            values, index = pair
            return values * index[:, None]

    model = GPipe(nn.Sequential(Embed(), Weigh()), [1, 1], chunks=3, checkpoint=mode)
    model(torch.arange(5)).sum().backward()
    assert model[0].table.weight.grad.tolist() == [[i, i] for i in range(5)]


def test_two_positional_inputs_are_refused():
    with pytest.raises(TypeError):
        GPipe(linears(), [1, 1])(torch.rand(1, 1), torch.rand(1, 1))


@pytest.mark.parametrize("value", ["hello", 42, (torch.rand(1), "hello"), [torch.rand(1)]])
def test_what_is_no_tensor_can_neither_enter_nor_leave(value):
    class Returns(nn.Module):
        def forward(self, x):
            return value

    with pytest.raises(TypeError, match=r"must be a tensor or a flat tuple of tensors"):
        GPipe(linears(), [1, 1])(value)
    with pytest.raises(TypeError, match=r"must return a tensor or a flat tuple of tensors"):
        GPipe(nn.Sequential(Returns()), [1])(torch.rand(1))


def test_no_layers_are_the_identity():
    model = GPipe(nn.Sequential(), [])
    x = torch.rand(3)
    assert model(x) is x
    assert model((x, x)) == (x, x)
    with pytest.raises(TypeError):
        model(42)
    with pytest.raises(ValueError, match=r"raykb\.gpipe\.balance"):
        GPipe(nn.Sequential())
    with pytest.raises(ValueError, match=r"raykb\.gpipe\.balance"):
        GPipe(nn.Sequential(), [1])


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.cuda(),
        lambda model: model.cuda(0),
        lambda model: model.cpu(),
        lambda model: model.to("cpu"),
        lambda model: model.to(0),
        lambda model: model.to(torch.device("cpu")),
        lambda model: model.to(torch.rand(1)),
        lambda model: model.to("cpu", torch.float64),
        lambda model: model.to(device="cpu"),
        lambda model: model.to(tensor=torch.rand(1)),
        lambda model: model.to(other=torch.rand(1)),
    ],
)
def test_moving_is_denied(move):
    with pytest.raises(TypeError, match="denied to move parameters and buffers, because GPipe"):
        move(GPipe(linears(), [1, 1]))


@pytest.mark.parametrize(
    ("cast", "dtype"),
    [
        (lambda model: model.half(), torch.half),
        (lambda model: model.double(), torch.double),
        (lambda model: model.to(torch.double), torch.double),
        (lambda model: model.to(dtype=torch.bfloat16), torch.bfloat16),
    ],
)
def test_casting_is_allowed(cast, dtype):
    model = GPipe(linears(), [1, 1])
    assert cast(model) is model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(torch.ones(2, 1, dtype=dtype)).dtype == dtype


def test_deferred_batch_norm_replaces_layers_on_request_alone():
    def model(**options):
        return GPipe(nn.Sequential(nn.Sequential(nn.BatchNorm1d(2))), [1], chunks=4, **options)

    assert type(model()[0][0]) is nn.BatchNorm1d
    assert type(model(deferred_batch_norm=True)[0][0]) is DeferredBatchNorm
