import gc
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed

from raykb.gpipe.memory import LayerSizes, SavedTensorMeter, micro_batch_bytes, predict
from raykb.gpipe.partition import cut
from raykb.gpipe.profile import profile_sizes
from raykb.gpipe.schedule import actions, exempt
from raykb.parts.skip import pop, skippable, stash

MODES = ("never", "always", "except_last")
SIZE = 4 * 100  # bytes of the tensors below


def tensor(**options):
    return torch.zeros(100, **options)


# ---------------------------------------------------------------------- the meter


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_counts_from_its_saving_to_its_release(device):
    x = tensor(requires_grad=True, device=device)
    with SavedTensorMeter() as meter:
        y = x.exp()
        assert meter.current == SIZE
        z = y.tanh()
        assert meter.current == meter.peak == 2 * SIZE
        z.sum().backward()
        assert meter.current == 0
        assert meter.peak == 2 * SIZE
    assert x.grad.device.type == device


def test_a_memory_that_several_saved_tensors_share_counts_once():
    x = tensor(requires_grad=True)
    with SavedTensorMeter() as meter:
        y = x.exp()
        kept = [y.view(10, 10).sin(), y[:50].cos(), y.sin()]
        assert meter.current == SIZE
        assert [storage.nbytes() for storage in meter.storages()] == [SIZE]
        del kept[0], kept[0]
        assert meter.current == SIZE
        del y, kept
        assert meter.current == 0
        assert meter.storages() == []


def test_what_is_dropped_without_a_backward_pass_is_released():
    with SavedTensorMeter() as meter:
        output = nn.Sequential(nn.Linear(10, 10), nn.Sigmoid(), nn.Tanh())(torch.zeros(10, 10))
        assert meter.current > 0
        del output
        assert meter.current == 0


def test_a_release_after_the_meter_is_closed_counts():
    x = tensor(requires_grad=True)
    with SavedTensorMeter() as meter:
        y = x.exp()
    unmetered = x.exp()
    assert meter.current == SIZE
    y.sum().backward()
    assert meter.current == 0
    assert unmetered.requires_grad


def test_parameters_do_not_count():
    layer = nn.Linear(10, 10, bias=False)
    x = torch.zeros(10, 10, requires_grad=True)
    with SavedTensorMeter(layer.parameters()) as meter:
        output = layer(x)
        assert meter.current == SIZE
    with SavedTensorMeter() as all_counts:
        other = layer(x)
        assert all_counts.current == 2 * SIZE
    assert output.shape == other.shape


def test_the_peak_starts_again():
    x = tensor(requires_grad=True)
    with SavedTensorMeter() as meter:
        x.exp().tanh()
        assert (meter.current, meter.peak) == (0, 2 * SIZE)
        meter.reset_peak()
        assert meter.peak == 0


def test_gradients_are_the_same_under_the_meter():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()
    )
    grads = []
    for metered in (False, True):
        model.zero_grad()
        x = torch.arange(200.0).view(4, 2, 5, 5).requires_grad_()
        with SavedTensorMeter(model.parameters()) if metered else torch.enable_grad():
            model(x).pow(2).sum().backward()
        grads.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_recomputation_counts_while_it_lasts():
    x = tensor(requires_grad=True)
    with SavedTensorMeter() as meter:
        y = recomputed(lambda t: t.exp().tanh().exp(), x * 1, use_reentrant=True)
        assert meter.current == SIZE
        y.sum().backward()
        assert meter.peak == 4 * SIZE
        assert meter.current == 0


def test_the_meter_leaves_no_garbage():
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU())
    gc.collect()
    with SavedTensorMeter(model.parameters()) as meter:
        model(torch.zeros(10, 10)).sum().backward()
    assert meter.current == 0
    assert gc.collect() == 0


def test_second_derivatives_pass_through_the_meter():
    x = torch.tensor([0.5, 2.0], requires_grad=True)
    with SavedTensorMeter():
        (first,) = torch.autograd.grad(x.exp().square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(second, 4 * (2 * x).exp())


# ---------------------------------------------------------------------- predictions


def equal_layers(count=3, parameters=0):
    """Layers that each keep 10 bytes and their 2 bytes of input, which is the output of another."""
    return [
        LayerSizes(str(i), parameters, 1, {100 + i: 2}, saved={100 + i: 2, i: 10})
        for i in range(count)
    ]


A, INPUT = 12, 2


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("micro_batches", [1, 4, 8])
def test_activations_follow_the_formulas(stages, micro_batches):
    for schedule, mode in itertools.product(("gpipe", "gpipe_fifo", "1f1b"), MODES):
        if schedule == "1f1b" and micro_batches < stages:
            continue
        found = predict(
            equal_layers(stages),
            [1] * stages,
            schedule=schedule,
            micro_batches=micro_batches,
            checkpoint=mode,
            state_tensors=0,
        )
        for stage, memory in enumerate(found):
            live = min(micro_batches, stages - stage) if schedule == "1f1b" else micro_batches
            if mode == "never":
                assert (memory.saved, memory.activations) == (live * A, live * A)
            else:
                assert memory.activations == (live - 1) * INPUT + A
                kept = (live - 1) * INPUT + A if mode == "except_last" else live * INPUT
                assert memory.saved == kept


def test_a_worker_of_two_stages_keeps_what_its_table_says():
    never, always = (
        predict(
            equal_layers(4),
            [1] * 4,
            schedule="interleaved",
            micro_batches=4,
            checkpoint=mode,
            state_tensors=0,
            stages_per_worker=2,
        )
        for mode in ("never", "always")
    )
    # worker 0: F0 F1 of stage 0, F0 F1 of stage 2, F2 of stage 0, then backward and forward in turn
    assert [memory.saved for memory in never] == [5 * A, 3 * A]
    assert [memory.activations for memory in always] == [4 * INPUT + A, 2 * INPUT + A]
    assert [memory.buffers for memory in never] == [2, 2]


@pytest.mark.parametrize("state_tensors", [0, 1, 2])
def test_weights_count_with_gradients_and_optimizer_state(state_tensors):
    (first, second) = predict(
        equal_layers(3, parameters=1000),
        [2, 1],
        schedule="gpipe",
        micro_batches=1,
        checkpoint="never",
        state_tensors=state_tensors,
    )
    assert (first.parameters, second.parameters) == (2000, 1000)
    assert first.optimizer == 2000 * state_tensors
    assert first.total == (2 + state_tensors) * 2000 + 2 + 2 * A
    assert second.total == (2 + state_tensors) * 1000 + 1 + A


def test_frozen_parameters_have_neither_gradient_nor_state():
    model = nn.Sequential(nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 4))
    (first, second) = predict(
        profile_sizes(model, torch.zeros(2, 8)),
        [1, 1],
        schedule="gpipe",
        micro_batches=1,
        checkpoint="never",
        state_tensors=2,
    )
    assert (first.parameters, first.gradients, first.optimizer) == (288, 0, 0)
    assert (second.parameters, second.gradients, second.optimizer) == (144, 144, 288)


@skippable(stash=["left"])
class Leave(nn.Module):
    def forward(self, x):
        yield stash("left", x.exp())
        return x.sin()


@skippable(pop=["left"])
class Multiply(nn.Module):
    def forward(self, x):
        left = yield pop("left")
        return x * left


def test_a_skip_counts_as_an_input_where_it_comes_from_another_stage():
    model = nn.Sequential(Leave(), nn.Identity(), Multiply(), nn.Flatten(0))
    sizes = profile_sizes(model, tensor(requires_grad=True))
    whole = [(3 * SIZE + SIZE - SIZE, SIZE)]  # input, skip and sine
    assert micro_batch_bytes(sizes, [4]) == whole
    assert micro_batch_bytes(sizes, [2, 2]) == [(2 * SIZE, SIZE), (2 * SIZE, 2 * SIZE)]


def run(parts, row, stage, micro_batches, keeping, inputs):
    """Run the actions of one stage; return the peak of the meter without recomputation."""
    part = nn.Sequential(*(layer for _, layer in parts[stage]))
    graphs, peak = {}, 0
    with SavedTensorMeter(part.parameters()) as meter:
        for kind, _, i in row:
            if kind == "F":
                x = inputs.clone().requires_grad_()
                again = i not in keeping
                graphs[i] = recomputed(part, x, use_reentrant=True) if again else part(x)
                del x
                peak = max(peak, meter.current)
            else:
                output = graphs.pop(i)
                output.backward(torch.ones_like(output))
                del output
        assert meter.current == 0
    return peak, meter.peak


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("mode", MODES)
def test_the_prediction_is_what_the_meter_shows(schedule, mode):
    stages, micro_batches, size = 3, 6, 32
    model = nn.Sequential(
        *(layer for _ in range(stages) for layer in (nn.Linear(size, size), nn.Tanh(), nn.ELU()))
    )
    sample = torch.zeros(16, size, requires_grad=True)
    balance = [3] * stages
    found = predict(
        profile_sizes(model, sample),
        balance,
        schedule=schedule,
        micro_batches=micro_batches,
        checkpoint=mode,
        state_tensors=0,
    )
    keeping = exempt(mode, schedule, micro_batches)
    parts = cut(list(model.named_children()), balance)
    for stage, row in enumerate(actions(schedule, stages, micro_batches)):
        saved, peak = run(parts, row, stage, micro_batches, keeping, sample.detach())
        assert found[stage].saved == saved
        assert found[stage].activations == peak


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"balance": [1, 1]}, r"balance: \[1, 1\], must be positive and sum to the model's 3"),
        ({"balance": [3, 0]}, r"balance: \[3, 0\]"),
        ({"checkpoint": "ever"}, "checkpoint: 'ever', must be one of always, except_last, never"),
        ({"micro_batches": 1, "schedule": "1f1b"}, "micro_batches: 1"),
    ],
)
def test_what_cannot_run_has_no_prediction(changes, problem):
    arguments = {"balance": [2, 1], "schedule": "gpipe", "micro_batches": 2, "checkpoint": "never"}
    with pytest.raises(ValueError, match=problem):
        predict(equal_layers(), state_tensors=1, **(arguments | changes))
