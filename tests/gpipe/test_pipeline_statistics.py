"""Batch norm in a pipeline: the running statistics are those of whole mini-batches."""

import pytest
import torch
from shared_pipelines import Rig, merged, modes_of, on_meta, rig, whole
from torch import nn

from raykb.gpipe.grid import make_grid


def normed():
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6, affine=False),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.BatchNorm1d(5, momentum=None),
    )


def images(rows, offset=0.0, scale=1.0, seed=0):
    x = torch.randn(rows, 3, 6, 6, generator=torch.Generator().manual_seed(seed + rows))
    x += torch.arange(rows).view(-1, 1, 1, 1) / rows  # micro-batches differ in their means
    return x * scale + offset, torch.zeros(rows)


def full_batch(batches, momentum=0.1):
    """Return running mean and variance of a first layer that sees whole batches, in float64."""
    norm = nn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64)
    for x in batches:
        norm(x.double())
    return norm.running_mean, norm.running_var


ROWS = (9, 6, 8)  # three micro-batches of at least two samples


def steps_of(modes, workers, per_worker):
    grid = make_grid(workers)
    found = {}
    for mode in modes:
        own = Rig(
            on_meta(normed),
            grid,
            per_worker=per_worker,
            schedule=mode[0],
            checkpoint=mode[1],
            micro_batches=2 if per_worker == 2 else 3,
        )
        counts = []
        for number, rows in enumerate(ROWS):
            own.step(*images(rows), number)
            if number == 1:
                own.predict(*images(5))
            names = [name for name in own.module.state_dict() if "num_batches" in name]
            counts.append({int(own.module.state_dict()[name]) for name in names})
        found[mode] = counts, own.module.state_dict()
    return found


@pytest.mark.parametrize(("workers", "per_worker"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_every_step_counts_once_in_every_mode(gloo, workers, per_worker):
    modes = modes_of(workers, per_worker)
    by_rank = gloo.run(steps_of, modes, workers, per_worker, size=workers)
    mean, variance = full_batch([images(rows)[0] for rows in ROWS])
    plain = on_meta(normed)
    names = set(nn.Sequential(normed()).state_dict())
    first_of_all = None
    for mode in by_rank[0]:
        for rank in by_rank:
            counts, _ = rank[mode]
            assert all(seen <= {i + 1} for i, seen in enumerate(counts)), (mode, counts)
        state = merged(rank[mode][1] for rank in by_rank)
        assert {f"0.{name}" for name in state} == names
        model = whole(plain)
        model.load_state_dict(state, strict=True)
        normed().load_state_dict(state, strict=True)
        torch.testing.assert_close(state["0.running_mean"].double(), mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(state["0.running_var"].double(), variance, rtol=1e-5, atol=0)
        first_of_all = first_of_all or state
        for name, value in state.items():
            torch.testing.assert_close(value, first_of_all[name], rtol=1e-6, atol=1e-6)


def statistics_of(cases, workers, replicas):
    grid = make_grid(workers, replicas)
    found = []
    for rows, offset, scale, checkpoint in cases:
        own = Rig(on_meta(normed), grid, checkpoint=checkpoint, micro_batches=2)
        for number in range(3):
            own.step(*images(rows, offset, scale, number), number)
        found.append(own.module.state_dict())
    return found


@pytest.mark.parametrize(("workers", "replicas"), [(2, 1), (2, 2), (1, 2)])
def test_statistics_are_those_of_the_full_batch_of_all_replicas(gloo, workers, replicas):
    cases = [(8, 0.0, 1.0, "always"), (13, 0.0, 1.0, "never"), (9, 1000.0, 0.1, "except_last")]
    by_rank = gloo.run(statistics_of, cases, workers, replicas, size=workers * replicas)
    for number, (rows, offset, scale, _) in enumerate(cases):
        mean, variance = full_batch([images(rows, offset, scale, i)[0] for i in range(3)])
        for rank in by_rank[::workers]:
            state = rank[number]
            error = (state["0.running_mean"].double() / mean - 1).abs().max()
            if offset:  # relative to a mean that is not near zero
                assert error <= 1e-6, (rows, error)
            torch.testing.assert_close(state["0.running_mean"].double(), mean, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(state["0.running_var"].double(), variance, rtol=1e-5, atol=0)
        for one, other in zip(by_rank, by_rank[workers:], strict=False):
            for name, value in one[number].items():  # columns agree bit for bit
                if "running" in name:
                    assert torch.equal(value, other[number][name]), name


def without_deferring(workers):
    grid = make_grid(workers)
    own = Rig(on_meta(normed), grid, deferred_batch_norm=False, checkpoint="never")
    own.step(*images(8))
    return own.module.state_dict()


def test_without_deferring_every_micro_batch_counts(gloo):
    state = merged(gloo.run(without_deferring, 2, size=2))
    norm = nn.BatchNorm2d(3)
    for part in images(8)[0].chunk(4):
        norm(part)
    assert int(state["0.num_batches_tracked"]) == 4
    torch.testing.assert_close(state["0.running_mean"], norm.running_mean)
    torch.testing.assert_close(state["0.running_var"], norm.running_var)


class Failing(nn.Module):
    armed = False

    def forward(self, x):
        if Failing.armed and not x.is_meta:
            raise ArithmeticError("now")
        return x


def after_a_failure():
    with_failure = nn.Sequential(nn.BatchNorm2d(3), Failing())
    own = rig(list(with_failure.named_children()))
    Failing.armed = True
    with pytest.raises(ArithmeticError, match="now"):
        own.step(*images(8, 500.0))
    Failing.armed = False
    own.step(*images(8))
    return own.module.state_dict()


def test_a_step_that_failed_leaves_no_statistics(gloo):
    (state,) = gloo.run(after_a_failure, size=1)
    mean, variance = full_batch([images(8)[0]])
    torch.testing.assert_close(state["0.running_mean"].double(), mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(state["0.running_var"].double(), variance, rtol=1e-5, atol=0)
    assert int(state["0.num_batches_tracked"]) == 1


def evaluated_one_by_one(workers):
    own = Rig(on_meta(normed), make_grid(workers), micro_batches=2)
    own.step(*images(8))
    before = {name: value.clone() for name, value in own.module.state_dict().items()}
    outputs = [own.predict(*images(rows)) for rows in (1, 2, 3, 7)]
    changed = [
        name for name, value in own.module.state_dict().items() if (value != before[name]).any()
    ]
    return changed, outputs, own.module.state_dict()


def test_evaluation_takes_any_batch_and_changes_nothing(gloo):
    by_rank = gloo.run(evaluated_one_by_one, 2, size=2)
    model = whole(on_meta(normed))
    model.load_state_dict(merged(rank[2] for rank in by_rank))
    model.eval()
    assert [rank[0] for rank in by_rank] == [[], []]
    assert by_rank[0][1] == [None] * 4
    for rows, output in zip((1, 2, 3, 7), by_rank[1][1], strict=True):
        torch.testing.assert_close(output, model(images(rows)[0], {})[0].detach())
