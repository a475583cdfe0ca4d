import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

from raykb.gpipe.schedule import (
    SCHEDULES,
    SPLIT,
    Action,
    actions,
    bubble_utilisation,
    first_back_propagated,
    makespan,
    problems,
    runnable,
    simulate,
    stages_of,
)

TORCH = {
    "gpipe": ScheduleLoopedBFS,
    "gpipe_fifo": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
}
GRID = list(itertools.product(SCHEDULES, (1, 2, 3, 4), (1, 3, 4, 6, 8), (1, 2, 3)))
RUNNABLE = [case for case in GRID if runnable(case[0], case[1] * case[3], *case[2:])]


def runnable_ones(schedule):
    return [case for case in RUNNABLE if case[0] == schedule]


def table(schedule, workers, micro_batches, per_worker):
    return actions(schedule, workers * per_worker, micro_batches, per_worker)


def text(row) -> str:
    return " ".join(f"{action.kind}{action.micro_batch}" for action in row)


# ---------------------------------------------------------------------- what torch runs


class Recorded(PipelineStage):
    """A stage that notes what its schedule makes it run."""

    log: list[tuple[str, int, int]]

    def forward_one_chunk(self, index, *args, **kwargs):
        self.log.append(("F", self.stage_index, index))
        return super().forward_one_chunk(index, *args, **kwargs)

    def backward_one_chunk(self, index, *args, full_backward=True, **kwargs):
        self.log.append(("B" if full_backward else "I", self.stage_index, index))
        return super().backward_one_chunk(index, *args, full_backward=full_backward, **kwargs)

    def backward_weight_one_chunk(self, index, *args, **kwargs):
        self.log.append(("W", self.stage_index, index))
        return super().backward_weight_one_chunk(index, *args, **kwargs)


def run_by_torch(schedule, workers, micro_batches, per_worker):
    """Run every worker in turn, in this process: messages come from nowhere."""
    stages = workers * per_worker
    data, between = torch.zeros(1, 2), torch.zeros(1, 2, requires_grad=True)
    rows = []
    for worker in range(workers):
        # torch's own means for its tests; only they can run a schedule without its peers.
        dist.init_process_group("fake", rank=worker, world_size=workers, store=FakeStore())
        log: list[tuple[str, int, int]] = []
        own = []
        for index in stages_of(worker, stages, workers, schedule):
            inputs, device = (between if index else data,), torch.device("cpu")
            own.append(Recorded(nn.Linear(2, 2), index, stages, device, inputs, (between,)))
            own[-1].log = log
        several = schedule not in ("gpipe_fifo", "1f1b")
        running = TORCH[schedule](
            own if several else own[0], micro_batches, loss_fn=lambda output, target: output.sum()
        )
        batch = torch.zeros(micro_batches, 2)
        running.step(
            *([batch] if worker == 0 else []),
            **({"target": batch} if own[-1].is_last else {}),
        )
        dist.destroy_process_group()
        rows.append([Action(*entry) for entry in log])
    return rows


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tables_are_what_torch_runs(schedule):
    for case in runnable_ones(schedule):
        assert table(*case) == run_by_torch(*case), case


@pytest.mark.parametrize(
    ("schedule", "workers", "micro_batches", "per_worker"),
    [
        ("1f1b", 4, 3, 1),
        ("interleaved", 2, 7, 2),
        ("interleaved", 3, 11, 2),
        ("zero_bubble", 2, 7, 1),
        ("zbv", 2, 4, 3),
    ],
)
def test_torch_refuses_what_is_not_runnable(schedule, workers, micro_batches, per_worker):
    assert not runnable(schedule, workers * per_worker, micro_batches, per_worker)
    try:
        with pytest.raises(ValueError, match=r"icrobatches|exactly 2 stages"):
            run_by_torch(schedule, workers, micro_batches, per_worker)
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("schedule", "rows"),
    [
        ("gpipe", ["F0 F1 F2 F3 B3 B2 B1 B0"] * 2),
        ("gpipe_fifo", ["F0 F1 F2 F3 B0 B1 B2 B3"] * 2),
        ("1f1b", ["F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]),
        (
            "zero_bubble",
            ["F0 F1 I0 W0 F2 I1 W1 F3 I2 W2 I3 W3", "F0 I0 F1 I1 W0 F2 I2 W1 F3 I3 W2 W3"],
        ),
    ],
)
def test_tables_read_as_the_docstring_says(schedule, rows):
    assert [text(row) for row in actions(schedule, 2, 4)] == rows


def test_every_action_is_run_once_by_the_worker_of_its_stage():
    for case in RUNNABLE:
        schedule, workers, micro_batches, per_worker = case
        for worker, row in enumerate(table(*case)):
            stages = stages_of(worker, workers * per_worker, workers, schedule)
            kinds = "FIW" if schedule in SPLIT else "BF"
            expected = itertools.product(kinds, stages, range(micro_batches))
            assert sorted(row) == sorted(expected), case


def test_the_micro_batch_that_is_exempt_is_back_propagated_first():
    for case in RUNNABLE:
        schedule, _, micro_batches, _ = case
        for row in table(*case):
            for stage in {action.stage for action in row}:
                backward = [a.micro_batch for a in row if a.kind in "BI" and a.stage == stage]
                assert backward[0] == first_back_propagated(schedule, micro_batches), case


# ---------------------------------------------------------------------- refusals


def test_gpipe_runs_any_number_of_micro_batches():
    for schedule, stages, micro_batches in itertools.product(
        ("gpipe", "gpipe_fifo"), (1, 5), (1, 2)
    ):
        assert runnable(schedule, stages, micro_batches)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("gpipe", 0, 1), ["stages: 0, must be at least 1"]),
        (
            ("zero", 2, -1, 0),
            [
                "micro_batches: -1, must be at least 1",
                "stages_per_worker: 0, must be at least 1",
                "schedule: 'zero', must be one of gpipe, gpipe_fifo, 1f1b, interleaved, "
                "zero_bubble, zbv",
            ],
        ),
        (
            ("1f1b", 4, 2),
            [
                "micro_batches: 2, the schedule 1f1b needs at least as many as there are stages, "
                "4; cut the batch into more, or take the schedule gpipe"
            ],
        ),
        (
            ("gpipe_fifo", 4, 2, 2),
            [
                "stages_per_worker: 2, must be 1 with the schedule gpipe_fifo; gpipe, interleaved, "
                "zero_bubble and zbv allow more"
            ],
        ),
        (
            ("zbv", 4, 4, 1),
            [
                "stages_per_worker: 1, must be 2 with the schedule zbv; zero_bubble allows any "
                "number"
            ],
        ),
        (
            ("interleaved", 5, 4, 2),
            ["stages: 5, must be a multiple of stages_per_worker = 2"],
        ),
        (
            ("interleaved", 4, 7, 2),
            [
                "micro_batches: 7, the schedule interleaved takes them in 3 equal rounds over 2 "
                "workers; take 6, or the schedule gpipe"
            ],
        ),
    ],
)
def test_what_cannot_run_is_said_with_its_remedy(arguments, found):
    assert problems(*arguments) == found
    with pytest.raises(ValueError, match=found[0][:12]):
        actions(*arguments)


@pytest.mark.parametrize("schedule", ["interleaved", "zero_bubble"])
def test_the_remedy_for_rounds_that_differ_can_run(schedule):
    for workers, micro_batches in itertools.product((2, 3, 5), range(1, 40)):
        for problem in problems(schedule, 2 * workers, micro_batches, 2):
            fitting = int(problem.split("take ")[1].split(",")[0])
            assert 0 < fitting < micro_batches
            assert runnable(schedule, 2 * workers, fitting, 2)


# ---------------------------------------------------------------------- time


@pytest.mark.parametrize("schedule", ["gpipe", "gpipe_fifo", "1f1b"])
@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batches", [8, 32])
def test_balanced_stages_take_m_plus_n_minus_1_passes(schedule, stages, micro_batches):
    table = actions(schedule, stages, micro_batches)
    passes = micro_batches + stages - 1
    assert makespan(table, [2.0] * stages, [5.0] * stages) == passes * 7.0
    assert bubble_utilisation(stages, micro_batches) == pytest.approx(micro_batches / passes)


def test_the_bubble_of_published_sizes():
    shares = {(2, 2): 0.667, (2, 8): 0.889, (4, 8): 0.727, (8, 32): 0.821}
    for (stages, micro_batches), share in shares.items():
        assert bubble_utilisation(stages, micro_batches) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("per_worker", [2, 3])
def test_interleaving_shrinks_the_bubble_as_many_times(workers, rounds, per_worker):
    micro_batches = workers * rounds
    stages = workers * per_worker
    took = makespan(
        actions("interleaved", stages, micro_batches, per_worker), [1.0] * stages, [2.0] * stages
    )
    work = micro_batches * per_worker * 3.0
    assert took - work == pytest.approx((workers - 1) * 3.0)
    assert work / took == pytest.approx(bubble_utilisation(workers, micro_batches, per_worker))


def test_breadth_first_over_several_stages_has_the_same_bubble():
    took = makespan(actions("gpipe", 8, 4, 2), [1.0] * 8, [2.0] * 8)
    assert 8 * 3.0 / took == pytest.approx(bubble_utilisation(4, 4, 2))


@pytest.mark.parametrize("schedule", ["gpipe", "gpipe_fifo", "1f1b"])
def test_the_slowest_stage_rules(schedule):
    forward, backward = [1.0, 4.0, 2.0], [2.0, 8.0, 4.0]
    took = {m: makespan(actions(schedule, 3, m), forward, backward) for m in range(4, 20)}
    for micro_batches in range(5, 20):
        assert took[micro_batches] - took[micro_batches - 1] == 12.0
    if schedule != "1f1b":  # whose first backward pass overlaps the end of the fill
        assert took[16] == sum(forward) + sum(backward) + 15 * 12.0


def test_no_table_waits_for_itself():
    for case in RUNNABLE:
        schedule, workers, micro_batches, per_worker = case
        times = [1.0] * workers * per_worker
        took = makespan(table(*case), times, [2.0 * time for time in times])
        work = 3 * per_worker * micro_batches
        assert took >= work, case
        least = work / bubble_utilisation(workers, micro_batches, per_worker, schedule)
        assert took >= least * (1 - 1e-12), case


@pytest.mark.parametrize(("schedule", "exempt"), [("gpipe", 7), ("1f1b", 0)])
def test_recomputation_adds_a_forward_pass_where_it_happens(schedule, exempt):
    one = actions(schedule, 1, 8)
    assert makespan(one, [1.0], [3.0]) == 8 * 4.0

    def backward(stage, micro_batch):
        return 2.0 + (micro_batch != exempt)

    assert makespan(one, [1.0], backward) == 8 * 3.0 + 7.0
    assert first_back_propagated(schedule, 8) == exempt


def test_a_simulation_says_when_each_action_runs():
    first, second = simulate(actions("1f1b", 2, 2), [1.0, 2.0], [2.0, 3.0])
    assert [(text([action]), *times) for action, *times in first] == [
        ("F0", 0.0, 1.0),
        ("F1", 1.0, 2.0),
        ("B0", 6.0, 8.0),
        ("B1", 11.0, 13.0),
    ]
    assert [times for _, *times in second] == [[1.0, 3.0], [3.0, 6.0], [6.0, 8.0], [8.0, 11.0]]


def test_a_table_without_actions_takes_no_time():
    assert makespan([[], []], [1.0], [1.0]) == 0.0


def test_a_dead_lock_names_who_waits_where():
    table = [
        [Action("F", 0, 0), Action("B", 0, 0), Action("F", 0, 1), Action("B", 0, 1)],
        [Action("F", 1, 0), Action("F", 1, 1), Action("B", 1, 0), Action("B", 1, 1)],
    ]
    with pytest.raises(ValueError, match="dead-lock") as caught:
        makespan(table, [1.0, 1.0], [1.0, 1.0])
    assert "worker 0 at B0 of stage 0; worker 1 at F1 of stage 1" in str(caught.value)
