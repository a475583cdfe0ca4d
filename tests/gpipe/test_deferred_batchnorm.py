"""Deferred batch norm: normalises micro-batches, remembers mini-batches."""

import copy

import pytest
import torch
from grids import thinned
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from raykb.gpipe.batchnorm import DeferredBatchNorm, commit_statistics
from raykb.gpipe.checkpointing import checkpoint


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


convert = DeferredBatchNorm.convert_deferred_batch_norm


def skewed(samples=16, channels=3, size=5):
    """Images whose mean and spread drift from the first to the last, and by channel."""
    drift = torch.linspace(0, 4, samples).view(-1, 1, 1, 1) + torch.arange(channels).view(-1, 1, 1)
    return torch.randn(samples, channels, size, size) * (1 + drift) + 10 * drift


def full_batch(x, momentum=0.1, steps_before=0):
    """Running statistics after one batch, in float64, from their definition."""
    x = x.double().transpose(0, 1).flatten(1)
    factor = 1 / (steps_before + 1) if momentum is None else momentum
    mean = x.sum(1) / x.shape[1]
    variance = ((x - mean[:, None]) ** 2).sum(1) / (x.shape[1] - 1)
    return factor * mean, (1 - factor) + factor * variance


def chunked(layer, x, chunks):
    return torch.cat([layer(chunk) for chunk in x.chunk(chunks)])


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("input_requires_grad", [True, False])
def test_outputs_and_gradients_are_those_of_batch_norm_on_each_micro_batch(
    chunks, input_requires_grad
):
    plain = nn.BatchNorm2d(3, eps=1e-3)
    nn.init.uniform_(plain.weight)
    deferred = convert(copy.deepcopy(plain), chunks)
    results = []
    x = skewed()
    for layer in (plain, deferred):
        x = x.detach().clone().requires_grad_(input_requires_grad)
        output = chunked(layer, x, chunks)
        (output**2).mean().backward()
        results.append((output, layer.weight.grad, layer.bias.grad, x.grad))
    for one, other in zip(*results, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("chunks", [1, 3, 4])
def test_running_statistics_are_those_of_the_whole_mini_batch(momentum, chunks):
    plain = nn.BatchNorm2d(3, momentum=momentum)
    deferred = convert(copy.deepcopy(plain), chunks)
    for step in range(3):
        x = skewed(14)
        plain(x)
        chunked(deferred, x, chunks)
        assert deferred.num_batches_tracked == plain.num_batches_tracked == step + 1
        torch.testing.assert_close(deferred.running_mean, plain.running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(deferred.running_var, plain.running_var, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("momentum", "offset", "drift", "memory_format"),
    thinned(
        [0.1, 1.0, None],
        [0.0, 1000.0, -1000.0],
        [0.0, 1.0],
        [torch.contiguous_format, torch.channels_last],
    ),
)
def test_statistics_do_not_cancel_where_the_mean_is_large(momentum, offset, drift, memory_format):
    spread = torch.randn(14, 4, 6, 6) + drift * torch.linspace(0, 3, 14).view(-1, 1, 1, 1)
    x = (offset + 3 + 0.1 * spread).to(memory_format=memory_format)
    layer = DeferredBatchNorm(4, momentum=momentum, chunks=4)
    chunked(layer, x, 4)
    mean, variance = full_batch(x, momentum)
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(12, 3), (12, 3, 7), (12, 3, 4, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_dimensions(shape, dtype):
    layer = DeferredBatchNorm(3, chunks=4).to(dtype)
    x = torch.randn(shape, dtype=dtype) * 2 + 5
    chunked(layer, x, 4)
    mean, variance = full_batch(x)
    torch.testing.assert_close(layer.running_mean, mean.to(dtype))
    torch.testing.assert_close(layer.running_var, variance.to(dtype))


def test_bfloat16_activations_are_summed_in_float32():
    layer, x = DeferredBatchNorm(3, chunks=2), (skewed() / 4).bfloat16()
    assert chunked(layer, x, 2).dtype == torch.bfloat16
    mean, variance = full_batch(x)
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-5, atol=1e-6)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    plain = nn.BatchNorm2d(3, momentum=1.0)
    plain(skewed())
    deferred = convert(copy.deepcopy(plain), 4)
    before = copy.deepcopy(deferred.state_dict())
    x = skewed()
    assert torch.equal(plain.eval()(x), deferred.eval()(x))
    for name, value in deferred.state_dict().items():
        assert torch.equal(value, before[name])


def test_counters_rise_once_a_step_also_around_an_evaluation():
    layer, x = DeferredBatchNorm(3, chunks=4), skewed()
    counts = []
    for training in (True, True, False, True):
        layer.train(training)
        chunked(layer, x, 4)
        counts.append(int(layer.num_batches_tracked))
    assert counts == [1, 2, 2, 3]


def test_training_without_gradients_counts_as_in_batch_norm():
    layer, x = DeferredBatchNorm(3, chunks=2), skewed()
    with torch.no_grad():
        chunked(layer, x, 2)
    torch.testing.assert_close(layer.running_mean, full_batch(x)[0].float())


def test_recomputation_is_not_counted():
    layer, x = DeferredBatchNorm(3, chunks=4), skewed()
    for chunk in x.chunk(4):
        (output,) = checkpoint(lambda chunk: (layer(chunk),), chunk)
        output.sum().backward()
    assert layer.num_batches_tracked == 1
    torch.testing.assert_close(layer.running_mean, full_batch(x)[0].float())


def test_statistics_are_committed_by_the_caller_with_chunks_none():
    layer, x = DeferredBatchNorm(3, chunks=None), skewed()
    before = layer.running_mean.clone()
    chunked(layer, x, 4)
    assert torch.equal(layer.running_mean, before)
    for _ in range(2):  # nothing was seen between: nothing changes
        layer.commit()
        assert layer.num_batches_tracked == 1
        torch.testing.assert_close(layer.running_mean, full_batch(x)[0].float())


def test_what_a_broken_step_left_can_be_discarded():
    layer, x = DeferredBatchNorm(3, chunks=2), skewed()
    layer(x * 7)
    layer.discard()
    chunked(layer, x, 2)
    assert layer.num_batches_tracked == 1
    torch.testing.assert_close(layer.running_mean, full_batch(x)[0].float())


def test_accumulators_are_not_saved_and_never_require_grad():
    layer = DeferredBatchNorm(3, chunks=4)
    x = skewed().requires_grad_()
    layer(x)
    assert layer.state_dict().keys() == nn.BatchNorm2d(3).state_dict().keys()
    assert not layer.sum.requires_grad
    assert layer.sum.grad_fn is None
    values = x.detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.sum, values.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.sum_squares, values.square().sum(1), rtol=1e-5, atol=0)


def test_a_layer_can_be_copied_and_cast_in_the_middle_of_a_step():
    layer, x = DeferredBatchNorm(3, chunks=2), skewed().double()
    first, second = x.chunk(2)
    layer(first.float())
    layer = copy.deepcopy(layer).double()
    layer(second)
    torch.testing.assert_close(layer.running_mean, full_batch(x)[0])


def test_conversion_keeps_parameters_buffers_and_mode():
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3, 1e-3, None, False)))
    plain.eval()
    before = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    converted = convert(plain, 4)
    assert converted is plain
    layer = converted[1][0]
    assert type(layer) is DeferredBatchNorm
    assert (layer.eps, layer.momentum, layer.affine, layer.chunks) == (1e-3, None, False, 4)
    assert not layer.training
    assert "chunks=4" in repr(layer)
    after = {**dict(converted.named_parameters()), **dict(converted.named_buffers())}
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_conversion_leaves_alone_what_it_must():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return functional.relu(super().forward(x))

    class Noted(nn.BatchNorm2d):
        def get_extra_state(self):
            return {"version": 1}

    class Larger(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.inner = nn.Linear(2, 2)

    layers = [
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.SyncBatchNorm(3),
        nn.InstanceNorm2d(3, track_running_stats=True),
        Own(3),
        Noted(3),
        Larger(3),
        weight_norm(nn.BatchNorm2d(3)),
    ]
    assert all(convert(layer, 4) is layer for layer in layers)


def test_conversion_keeps_hooks_and_what_else_hangs_on_a_layer():
    layer, calls = nn.BatchNorm1d(3), []
    layer.note = "mine"
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    handle = layer.register_forward_hook(lambda *_: calls.append("removed"))
    deferred = convert(layer, 4)
    handle.remove()
    deferred(torch.rand(2, 3))
    assert calls == ["before", "after"]
    assert deferred.note == "mine"


def test_a_lazy_layer_that_has_not_been_run_is_refused():
    lazy = nn.LazyBatchNorm1d()
    with pytest.raises(ValueError, match="run the model once on a batch before"):
        convert(nn.Sequential(lazy), 4)
    lazy(torch.rand(2, 3))
    assert type(convert(lazy, 4)) is DeferredBatchNorm


def test_conversion_of_deferred_ones():
    layer = convert(nn.BatchNorm1d(3), 4)
    assert convert(layer, 4) is layer
    other = convert(layer, 2)
    assert other is not layer
    assert other.chunks == 2
    assert other.weight is layer.weight
    assert convert(layer, None).chunks is None


def test_a_layer_in_two_places_stays_one_layer():
    shared = nn.BatchNorm1d(3)
    model = convert(nn.ModuleList([nn.Sequential(shared), nn.Sequential(shared)]), 4)
    assert type(model[0][0]) is DeferredBatchNorm
    assert model[0][0] is model[1][0]


def test_layers_without_memory_are_converted():
    with torch.device("meta"):
        model = nn.Sequential(nn.BatchNorm2d(3))
    layer = convert(model, 4)[0]
    assert layer.weight.is_meta
    assert layer(torch.empty(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)


def test_a_mini_batch_of_no_calls_is_refused():
    with pytest.raises(ValueError, match="chunks: 0, must be at least 1"):
        convert(nn.BatchNorm2d(3), 0)


def test_one_value_a_channel_and_one_dimension_are_refused():
    layer = DeferredBatchNorm(3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        layer(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"expected at least 2D input \(got 1D input\)"):
        layer(torch.ones(3))
    assert layer.num_batches_tracked == 0


def test_training_with_it_stays_close_to_batch_norm():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    deferred = convert(copy.deepcopy(plain), 4)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (plain, deferred)]
    x, target = torch.rand(16, 3, 8, 8), torch.rand(16, 3, 8, 8)
    for _ in range(5):
        for model, optimizer in zip((plain, deferred), optimizers, strict=True):
            model.train()
            optimizer.zero_grad()
            functional.mse_loss(chunked(model, x, 1 if model is plain else 4), target).backward()
            optimizer.step()
        with torch.no_grad():
            one, other = plain.eval()(x), deferred.eval()(x)
        assert (one - other).abs().max() < 5e-3  # of about 1: one normalises by quarters


def test_a_convolution_before_it_sees_other_outputs_but_the_same_statistics_until_the_first_step():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    deferred = convert(copy.deepcopy(plain), 4)
    x = skewed()
    agree = []
    for _ in range(2):
        outputs = []
        for model in (plain, deferred):
            outputs.append(chunked(model, x, 1 if model is plain else 4))
            (outputs[-1] ** 3).mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.5 * parameter.grad
        assert not torch.allclose(*outputs)
        agree.append(torch.allclose(plain[1].running_var, deferred[1].running_var, rtol=1e-4))
    assert agree == [True, False]


def replica(rank_counts):
    """What one process does: its share of a mini-batch in micro-batches, then the commit."""
    group = torch.distributed.group.WORLD
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, momentum=None))
    model = convert(model, None)
    results = []
    for counts in rank_counts:
        x = skewed(sum(counts)) + 1000
        share = x.split(counts)[group.rank()]
        for micro_batch in share.split(4) if len(share) else ():
            model(micro_batch)
        commit_statistics(model, group)
        results.append((x, {name: value.clone() for name, value in model.state_dict().items()}))
    return results


@pytest.mark.parametrize("counts", [[(8, 8), (12, 4)], [(10, 6), (9, 0)]])
def test_replicas_share_the_statistics_of_the_whole_mini_batch(gloo, counts):
    first, second = gloo.run(replica, counts, size=2)
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for step, ((x, one), (_, other)) in enumerate(zip(first, second, strict=True), 1):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert one["0.num_batches_tracked"] == one["2.num_batches_tracked"] == step
        batch_mean, batch_variance = full_batch(x, momentum=1.0)
        mean, variance = 0.9 * mean + 0.1 * batch_mean, 0.9 * variance + 0.1 * batch_variance
        torch.testing.assert_close(one["0.running_mean"].double(), mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(one["0.running_var"].double(), variance, rtol=1e-5, atol=0)


def test_without_a_group_all_layers_are_committed():
    model = convert(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)), None)
    model(torch.randn(4, 3))
    commit_statistics(model)
    assert [int(layer.num_batches_tracked) for layer in model] == [1, 1]
