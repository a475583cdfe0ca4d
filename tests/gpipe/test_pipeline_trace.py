"""The spans of a step are what the schedule's table says, in its order."""

import itertools

import pytest
import torch
from shared_pipelines import CHECKPOINTS, Rig, on_meta
from torch import nn

from raykb.gpipe.grid import make_grid
from raykb.gpipe.schedule import SCHEDULES, SPLIT, actions
from raykb.gpipe.trace import efficiency

CASES = [
    (schedule, checkpoint, 2 if schedule in ("interleaved", "zbv") else 1)
    for schedule, checkpoint in itertools.product(SCHEDULES, CHECKPOINTS)
    if schedule not in SPLIT or checkpoint == "never"
]


def wide():
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))


def traced(workers):
    grid = make_grid(workers)
    x, y = torch.randn(64, 64), torch.zeros(64)
    found = []
    for schedule, checkpoint, per_worker in CASES:
        own = Rig(
            on_meta(wide), grid, per_worker=per_worker, schedule=schedule, checkpoint=checkpoint
        )
        own.step(x, y)
        own.step(x, y, 1, align=True)
        found.append(own.pipeline.spans())
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_each_worker_runs_its_table_one_action_after_another(gloo, workers):
    by_rank = gloo.run(traced, workers, size=workers)
    for number, (schedule, checkpoint, per_worker) in enumerate(CASES):
        spans = by_rank[0][number]
        assert all(rank[number] == spans for rank in by_rank)
        stages = workers * per_worker
        micro_batches = 1 + max(span.micro_batch for own in spans for span in own)
        assert micro_batches == 4
        table = actions(schedule, stages, micro_batches, per_worker)
        for own, row in zip(spans, table, strict=True):
            assert [span[:3] for span in own] == [tuple(action) for action in row]
            times = [time for span in own for time in span[3:]]
            assert times == sorted(times)
            assert times[0] >= 0
        figures = efficiency(spans, schedule, checkpoint=checkpoint)
        for factor in ("bubble", "balance", "utilisation"):
            assert 0 < figures[factor] <= 1, (schedule, checkpoint, factor, figures)
        # Medians may be longer than what the critical path took, on a machine that is busy.
        assert 0 < figures["runtime"] <= 1.2, (schedule, checkpoint, figures)


def uneven():
    own = Rig(on_meta(wide), make_grid(2))
    own.step(torch.zeros(7, 64), torch.zeros(7), align=True)
    return own.pipeline.spans()


def test_a_smaller_last_micro_batch_has_its_own_number(gloo):
    for own in gloo.run(uneven, size=2)[0]:
        done = [f"{span.kind}{span.micro_batch}" for span in own]
        assert done == ["F0", "F1", "F2", "B2", "B1", "B0", "F3", "B3"]
