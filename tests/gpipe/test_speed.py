"""How fast workers are beside each other, and what the balance makes of it."""

import functools
import types

import pytest
import torch
import torch.distributed as dist

from raykb.gpipe import speed
from raykb.gpipe.costs import Costs
from raykb.gpipe.grid import make_grid
from raykb.gpipe.memory import LayerSizes
from raykb.runtime import stage_training
from raykb.runtime.stages import PipelineSettings

CPU = torch.device("cpu")


def equal_costs(layers):
    sizes = [LayerSizes(str(i), 0, 0) for i in range(layers)]
    return Costs([1.0] * layers, [2.0] * layers, sizes)


@pytest.fixture
def clock(monkeypatch):
    """Let a matrix product take so many seconds on the clock that rates are read from."""
    now, seconds, multiply = 0.0, 0.0, torch.mm

    def product(*arguments, **options):
        nonlocal now
        now += seconds
        return multiply(*arguments, **options)

    def take(given):
        nonlocal seconds
        seconds = given

    monkeypatch.setattr(speed, "time", types.SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(torch, "mm", product)
    return take


@pytest.mark.parametrize("seconds", [0.01, 0.03])
def test_a_rate_is_of_the_products_made(clock, seconds):
    clock(seconds)
    assert speed.products_a_second(CPU) == pytest.approx(1 / seconds)


ALIKE = torch.tensor([[100.0, 100.0]]).repeat(25, 1)
HALF = torch.tensor([[50.0, 100.0]]).repeat(25, 1)


def beside_others(rates, *, rounds, worker, share):
    """Return the rates where a neighbour leaves a worker its share in some of the rounds."""
    changed = rates.clone()
    changed[list(rounds), worker] *= share
    return changed


@pytest.mark.parametrize(
    ("rates", "speeds"),
    [
        (ALIKE, [1.0, 1.0]),
        (HALF, [0.5, 1.0]),
        (beside_others(ALIKE, rounds=range(12), worker=0, share=0.1), [1.0, 1.0]),  # at first
        (beside_others(ALIKE, rounds=range(18), worker=1, share=0.5), [1.0, 1.0]),  # not for sure
        (beside_others(ALIKE, rounds=range(21), worker=1, share=0.5), [1.0, 0.5]),
        (beside_others(HALF, rounds=range(0, 24, 2), worker=1, share=0.6), [0.5, 1.0]),
        (beside_others(HALF, rounds=range(3), worker=1, share=0.1), [0.5, 1.0]),
        (HALF * torch.linspace(0.1, 1, 25)[:, None], [0.5, 1.0]),  # all of them are slowed
    ],
)
def test_a_worker_is_slower_if_it_is_so_in_most_rounds_and_by_the_median(rates, speeds):
    assert speed.speeds_of(rates) == pytest.approx(speeds)


def found(workers, rates):
    """Return the speeds, where each process has its rate."""
    grid = make_grid(workers, len(rates) // workers, timeout_s=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "products_a_second", lambda device: rates[grid.rank])
        return speed.relative_speeds(grid, CPU)


@pytest.mark.parametrize(
    ("workers", "rates", "speeds"),
    [
        (2, [200.0, 100.0], [1.0, 0.5]),
        (3, [40.0, 100.0, 90.0], [0.4, 1.0, 0.9]),
        (2, [100.0, 85.0], [1.0, 1.0]),  # chance
        (2, [100.0, 100.0, 100.0, 25.0], [1.0, 0.25]),  # a stage is as fast as its slowest replica
    ],
)
def test_workers_agree_on_who_is_slower_by_more_than_chance(gloo, workers, rates, speeds):
    for own in gloo.run(found, workers, rates, size=len(rates)):
        assert own == pytest.approx(speeds)


@pytest.mark.parametrize(
    ("speeds", "layers"),
    [(None, [6, 6]), ([1.0, 1.0], [6, 6]), ([1.0, 0.5], [8, 4]), ([0.2, 1.0], [2, 10])],
)
def test_time_is_balanced_for_the_speed_of_each_worker(speeds, layers):
    settings = PipelineSettings(stages=2)
    assert settings.cut(equal_costs(12), 2, speeds) == layers


def test_what_is_not_balanced_by_time_stays_as_it_is():
    costs = equal_costs(12)
    assert PipelineSettings(balance=[5, 7]).cut(costs, 2, [1.0, 0.1]) == [5, 7]


@pytest.mark.parametrize(
    ("schedule", "layers"), [("interleaved", [4, 2, 4, 2]), ("zbv", [4, 2, 2, 4])]
)
def test_each_stage_has_the_speed_of_the_worker_that_holds_it(schedule, layers):
    settings = PipelineSettings(
        stages=4, stages_per_worker=2, schedule=schedule, checkpoint="never"
    )
    assert settings.cut(equal_costs(12), 2, [1.0, 0.5]) == layers


def agreed(folder, hosts, rates):
    """Return the speeds that a training is built with, and whether they were measured."""
    grid, calls = make_grid(len(hosts), timeout_s=60), []

    def measured(device):
        calls.append(device)
        return rates[grid.rank]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_training, "_host", lambda: hosts[grid.rank])
        patch.setattr(speed, "products_a_second", measured)
        speeds = stage_training._speeds(grid, CPU, str(folder))
    assert dist.get_world_size() == len(hosts)
    return speeds, bool(calls)


def test_speeds_are_measured_over_hosts_and_kept_while_they_stay(gloo, tmp_path):
    run = functools.partial(gloo.run, agreed, tmp_path, size=2)
    assert run(["a", "a"], [2.0, 1.0]) == [(None, False)] * 2
    assert run(["a", "b"], [2.0, 1.0]) == [([1.0, 0.5], True)] * 2
    assert run(["a", "b"], [1.0, 4.0]) == [([1.0, 0.5], False)] * 2  # of the run that goes on
    assert run(["a", "c"], [1.0, 4.0]) == [([0.25, 1.0], True)] * 2
