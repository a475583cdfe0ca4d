"""Gradients of a model in pieces: clipped, summed and scaled as those of the whole."""

import pytest
import torch
from shared_pipelines import Rig, largest_error, merged, on_meta, reference, rig, squares, whole
from torch import nn

from raykb.gpipe.gradients import LossScaler, clip_over_stages, sum_over_replicas
from raykb.gpipe.grid import make_grid


def perceptron():
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.ELU(), nn.LayerNorm(6), nn.Linear(6, 3)
    )


def data(rows, dtype=torch.float32):
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return x, torch.linspace(-1, 1, rows, dtype=dtype)


def layers_of(dtype=torch.float32, frozen=()):
    layers = on_meta(perceptron)
    for name, layer in layers:
        layer.to(dtype).requires_grad_(name not in frozen)
    return layers


def clipped(workers, replicas, cases):
    grid = make_grid(workers, replicas)
    found = []
    for rows, frozen, dtype, max_norm in cases:
        own = Rig(layers_of(dtype, frozen), grid)
        loss = own.step(*data(rows, dtype))
        parameters = list(own.module.parameters())
        if replicas > 1:
            sum_over_replicas(parameters, grid.column)
        summed = {name: None if g is None else g.clone() for name, g in own.gradients().items()}
        norm = clip_over_stages(parameters, max_norm, grid.row)
        found.append((loss, summed, norm, own.gradients()))
    return found


CASES = [
    (8, (), torch.float32, 0.01),
    (5, ("0",), torch.float32, 0.01),
    (1, (), torch.float32, 100.0),
    (1, ("2", "4", "5"), torch.float32, 0.01),
    (7, ("2", "4", "5"), torch.float64, 0.01),
    (8, (), torch.float64, 100.0),
]


@pytest.mark.parametrize(("workers", "replicas"), [(1, 1), (3, 1), (2, 2), (1, 3)])
def test_sum_norm_and_clipping_are_those_of_one_process(gloo, workers, replicas):
    by_rank = gloo.run(clipped, workers, replicas, CASES, size=workers * replicas)
    for number, (rows, frozen, dtype, max_norm) in enumerate(CASES):
        case, tight = CASES[number], 1e-6 if dtype == torch.float32 else 1e-12
        part = whole(layers_of(dtype, frozen))
        loss, gradients = reference(part, *data(rows, dtype))
        trained = {name: g.clone() for name, g in gradients.items() if g is not None}
        expected = float(nn.utils.clip_grad_norm_(part.parameters(), max_norm))
        after = {name: p.grad for name, p in part.named_parameters() if p.grad is not None}
        for replica in range(replicas):
            row = [by_rank[replica * workers + worker][number] for worker in range(workers)]
            summed, cut = (
                {n: g for n, g in merged(rank[i] for rank in row).items() if g is not None}
                for i in (1, 3)
            )
            assert largest_error(summed, trained)[0] <= tight, case
            assert largest_error(cut, after)[0] <= tight, case
            for rank in row:
                assert rank[0] == pytest.approx(loss, rel=tight), case
                assert float(rank[2]) == pytest.approx(expected, rel=1e-6), case


def scaled(workers, faulty):
    """Step with a scaler; the gradient of one worker overflows at the second step."""
    grid = make_grid(workers)
    own, scaler = Rig(layers_of(), grid), LossScaler(scale=1024.0, growth_steps=2)
    parameters = list(own.module.parameters())
    found = []
    for number in range(5):
        own.pipeline.loss_scale = scaler.scale
        loss = own.step(*data(8), number)
        if number == 1 and grid.rank == faulty:
            parameters[0].grad[0] = torch.inf
        finite = scaler.unscale(parameters)
        scaler.update(finite)
        found.append((loss, finite, scaler.scale, scaler.state_dict(), own.gradients()))
    return found


@pytest.mark.parametrize("faulty", [0, 1])
def test_an_overflow_in_one_stage_is_one_of_all(gloo, faulty):
    by_rank = gloo.run(scaled, 2, faulty, size=2)
    loss, gradients = reference(whole(layers_of()), *data(8))
    for rank in by_rank:
        assert [found[0] for found in rank] == [pytest.approx(loss, rel=1e-6)] * 5
        assert [found[1] for found in rank] == [True, False, True, True, True]
        assert [found[2] for found in rank] == [1024.0, 512.0, 512.0, 1024.0, 1024.0]
    error, where = largest_error(merged(rank[-1][4] for rank in by_rank), gradients)
    assert error <= 1e-6, where


def test_a_scaler_goes_on_from_its_state(gloo):
    first, *rest = gloo.run(scaled, 1, 0, size=1)[0]
    assert rest
    scaler = LossScaler(growth_steps=2)
    scaler.load_state_dict(first[3])
    assert (scaler.scale, scaler.state_dict()) == (1024.0, {"scale": 1024.0, "good_steps": 1})
    scaler.update(True)
    assert scaler.state_dict() == {"scale": 2048.0, "good_steps": 0}


def test_gradients_that_are_never_finite_end_the_training():
    scaler = LossScaler(scale=2.0**-24)
    with pytest.raises(FloatingPointError, match="not finite at any scale"):
        scaler.update(False)


def mixed(workers, dtype):
    own, scaler = rig(layers_of(), workers, autocast=dtype), LossScaler(scale=2.0**10)
    optimizer = torch.optim.SGD(own.module.parameters(), lr=0.05)
    losses = []
    for number in range(6):
        own.pipeline.loss_scale = scaler.scale
        losses.append(own.step(*data(8), number))
        finite = scaler.unscale(own.module.parameters())
        scaler.update(finite)
        if finite:
            optimizer.step()
    return losses


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_trains_as_full_precision_does(gloo, dtype):
    (full,) = gloo.run(mixed, 1, None, size=1)
    for losses in gloo.run(mixed, 3, dtype, size=3):
        assert losses == pytest.approx(full, rel=0.03)
        assert losses[-1] < 0.95 * losses[0]


def trained(workers, replicas):
    grid = make_grid(workers, replicas)
    own = Rig(layers_of(torch.float64), grid)
    optimizer = torch.optim.Adam(own.module.parameters(), lr=0.01)
    losses = []
    for number, rows in enumerate((8, 3, 1, 7)):
        losses.append(own.step(*data(rows, torch.float64), number))
        sum_over_replicas(own.module.parameters(), grid.column)
        clip_over_stages(own.module.parameters(), 0.5, grid.row)
        optimizer.step()
    return losses, own.module.state_dict()


def test_replicas_of_stages_train_as_one_process_with_the_whole_batch(gloo):
    ((losses, expected),) = gloo.run(trained, 1, 1, size=1)
    by_rank = gloo.run(trained, 2, 2, size=4)
    for own, _ in by_rank:
        assert own == pytest.approx(losses, rel=1e-9)
    for replica in (by_rank[:2], by_rank[2:]):
        error, where = largest_error(merged(state for _, state in replica), expected)
        assert error <= 1e-9, where


def second_replica_only():
    """Give all samples to the second replica."""
    grid = make_grid(1, 2)
    own = Rig(layers_of(), grid)
    x, y = data(3)
    share = (x[:0], y[:0]) if grid.replica == 0 else (x, y)
    terms = own.pipeline.step(own._feed((*share, 3)), 0)
    sum_over_replicas(own.module.parameters(), grid.column)
    return float(terms["loss"]), own.gradients()


def test_the_first_replica_may_have_no_sample(gloo):
    loss, gradients = reference(whole(layers_of()), *data(3), loss=squares)
    for found, own in gloo.run(second_replica_only, size=2):
        assert found == pytest.approx(loss, rel=1e-6)
        assert largest_error(own, gradients)[0] <= 1e-6
