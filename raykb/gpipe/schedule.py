"""What each worker of a pipeline runs, in order, and how long that takes.

The tables say what ``torch.distributed.pipelining`` runs; they are needed to predict makespan and
memory, and to judge a trace. F3 is the forward pass of micro-batch 3, B3 its backward pass; here
n = 2 stages, m = 4 micro-batches:

| schedule       | stage 0                 | stage 1                 | torch                     |
| -------------- | ----------------------- | ----------------------- | ------------------------- |
| ``gpipe``      | F0 F1 F2 F3 B3 B2 B1 B0 | F0 F1 F2 F3 B3 B2 B1 B0 | ScheduleLoopedBFS         |
| ``gpipe_fifo`` | F0 F1 F2 F3 B0 B1 B2 B3 | F0 F1 F2 F3 B0 B1 B2 B3 | ScheduleGPipe             |
| ``1f1b``       | F0 F1 B0 F2 B1 F3 B2 B3 | F0 B0 F1 B1 F2 B2 F3 B3 | Schedule1F1B              |

``interleaved`` (ScheduleInterleaved1F1B; Narayanan et al., arXiv 2104.04473) gives each of the n
workers v stages, worker r those numbered r, r + n, r + 2n and so on; so may ``gpipe``.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

SCHEDULES = ("gpipe", "gpipe_fifo", "1f1b", "interleaved")
_SEVERAL_STAGES = ("gpipe", "interleaved")  # those whose workers may hold several

Seconds: TypeAlias = Sequence[float] | Callable[[int, int], float]
"""Seconds of one pass of a stage: by stage, or a function of (stage, micro-batch)."""


class Action(NamedTuple):
    """One pass of one micro-batch through one stage, forward (F) or backward (B)."""

    kind: Literal["F", "B"]
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch} of stage {self.stage}"


def problems(
    schedule: str, stages: int, micro_batches: int, stages_per_worker: int = 1
) -> list[str]:
    """Return why a schedule cannot run such a pipeline; empty if it can.

    Args:
        schedule: one of :data:`SCHEDULES`.
        stages: of the whole pipeline.
        micro_batches: of one step.
        stages_per_worker: stages that each worker holds.
    """
    given = {"stages": stages, "micro_batches": micro_batches}
    given["stages_per_worker"] = stages_per_worker
    found = [f"{name}: {value}, must be at least 1" for name, value in given.items() if value < 1]
    if schedule not in SCHEDULES:
        found.append(f"schedule: {schedule!r}, must be one of {', '.join(SCHEDULES)}")
    if found:
        return found
    if stages_per_worker > 1 and schedule not in _SEVERAL_STAGES:
        found.append(
            f"stages_per_worker: {stages_per_worker}, must be 1 with the schedule {schedule}; "
            f"{' and '.join(_SEVERAL_STAGES)} allow more"
        )
    if stages % stages_per_worker:
        found.append(
            f"stages: {stages}, must be a multiple of stages_per_worker = {stages_per_worker}"
        )
    if schedule == "1f1b" and micro_batches < stages:
        found.append(
            f"micro_batches: {micro_batches}, the schedule 1f1b needs at least as many as there "
            f"are stages, {stages}; cut the batch into more, or take the schedule gpipe"
        )
    workers = max(1, stages // stages_per_worker)
    rounds = max(1, micro_batches // workers)
    if schedule == "interleaved" and micro_batches % rounds:
        fitting = micro_batches // workers * workers
        found.append(
            f"micro_batches: {micro_batches}, the schedule interleaved takes them in {rounds} "
            f"equal rounds over {workers} workers; take {fitting}, or the schedule gpipe"
        )
    return found


def as_run(balance: Sequence[int], schedule: str, workers: int) -> tuple[list[int], str]:
    """Return the layers of each stage and the schedule that ``workers`` run.

    One worker alone runs one stage: several would be one after the other anyway.
    """
    return (list(balance), schedule) if workers > 1 else ([sum(balance)], "1f1b")


def runnable(schedule: str, stages: int, micro_batches: int, stages_per_worker: int = 1) -> bool:
    """Return whether a schedule can run such a pipeline; :func:`problems` says why not."""
    return not problems(schedule, stages, micro_batches, stages_per_worker)


def actions(
    schedule: str, stages: int, micro_batches: int, stages_per_worker: int = 1
) -> list[list[Action]]:
    """Return what each worker runs, in order, as ``torch.distributed.pipelining`` runs it.

    Args:
        schedule: one of :data:`SCHEDULES`.
        stages: of the whole pipeline.
        micro_batches: of one step.
        stages_per_worker: stages that each worker holds.

    Raises:
        ValueError: the schedule cannot run such a pipeline.
    """
    found = problems(schedule, stages, micro_batches, stages_per_worker)
    if found:
        raise ValueError("\n".join(found))
    workers = stages // stages_per_worker
    held = [range(worker, stages, workers) for worker in range(workers)]
    if schedule == "1f1b":
        return [_one_forward_one_backward(r, workers, micro_batches) for r in range(workers)]
    if schedule == "interleaved":
        return [_interleaved(own, workers, micro_batches) for own in held]
    order = range(micro_batches) if schedule == "gpipe_fifo" else range(micro_batches)[::-1]
    return [
        [Action("F", stage, i) for stage in own for i in range(micro_batches)]
        + [Action("B", stage, i) for stage in reversed(own) for i in order]
        for own in held
    ]


def _one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Action]:
    forward = [Action("F", stage, i) for i in range(micro_batches)]
    backward = [Action("B", stage, i) for i in range(micro_batches)]
    return _alternate(forward, backward, ahead=stages - stage - 1)


def _interleaved(own: Sequence[int], workers: int, micro_batches: int) -> list[Action]:
    """Each round passes its micro-batches through one own stage after the other."""
    size = micro_batches // max(1, micro_batches // workers)  # micro-batches of a round
    rounds = [range(i, i + size) for i in range(0, micro_batches, size)]
    forward = [Action("F", stage, i) for part in rounds for stage in own for i in part]
    backward = [Action("B", stage, i) for part in rounds for stage in reversed(own) for i in part]
    ahead = (len(own) - 1) * size + 2 * (workers - 1 - own[0])
    return _alternate(forward, backward, ahead=ahead)


def _alternate(forward: list[Action], backward: list[Action], *, ahead: int) -> list[Action]:
    """Run ``ahead`` forward passes, then forward and backward in turn, then what is left."""
    ahead = min(ahead, len(forward))
    pairs = zip(forward[ahead:], backward, strict=False)
    left = backward[len(forward) - ahead :]
    return [*forward[:ahead], *(action for pair in pairs for action in pair), *left]


def first_back_propagated(schedule: str, micro_batches: int) -> int:
    """Return the micro-batch whose backward pass is the first on every stage.

    ``except_last`` exempts it: its activations would be rebuilt at once.
    """
    return micro_batches - 1 if schedule == "gpipe" else 0


def exempt(checkpoint: str, schedule: str, micro_batches: int) -> set[int]:
    """Return the micro-batches that keep their activations instead of recomputing them.

    Args:
        checkpoint: ``always``, ``never``, or ``except_last``, which exempts one.
        schedule: one of :data:`SCHEDULES`.
        micro_batches: of one step.

    Raises:
        ValueError: the mode is unknown.
    """
    found = {
        "always": set[int](),
        "except_last": {first_back_propagated(schedule, micro_batches)},
        "never": set(range(micro_batches)),
    }
    if checkpoint not in found:
        raise ValueError(f"checkpoint: {checkpoint!r}, must be one of {', '.join(found)}")
    return found[checkpoint]


def bubble_utilisation(workers: int, micro_batches: int, stages_per_worker: int = 1) -> float:
    """Return the share of the time in which balanced workers are busy: v m / (v m + n - 1).

    Args:
        workers: n.
        micro_batches: m.
        stages_per_worker: v; a bound that is reached where n divides m.
    """
    work = stages_per_worker * micro_batches
    return work / (work + workers - 1)


def simulate(
    table: Sequence[Sequence[Action]], forward_s: Seconds, backward_s: Seconds
) -> list[list[tuple[Action, float, float]]]:
    """Return when each worker runs each of its actions if messages take no time.

    An action starts as soon as its worker is free and what it needs is there: F the output of the
    stage before, B the stage's own F and the gradient from the stage behind.

    Args:
        table: the actions of each worker in order, as :func:`actions` gives them.
        forward_s: seconds of the forward pass of one micro-batch.
        backward_s: seconds of its backward pass, with recomputation.

    Returns:
        (action, start, end) in seconds, for each worker in order.

    Raises:
        ValueError: the workers would wait for each other forever.
    """
    stages = 1 + max((action.stage for row in table for action in row), default=-1)
    ends: dict[Action, float] = {}
    rows: list[list[tuple[Action, float, float]]] = [[] for _ in table]
    moved = True
    while moved:
        moved = False
        for todo, done in zip(table, rows, strict=True):
            for action in todo[len(done) :]:
                needs = _needs(action, stages)
                if not all(need in ends for need in needs):
                    break
                free = done[-1][2] if done else 0.0
                start = max([free, *(ends[need] for need in needs)])
                ends[action] = start + _seconds(action, forward_s, backward_s)
                done.append((action, start, ends[action]))
                moved = True
    stuck = [
        f"worker {worker} at {todo[len(done)]}"
        for worker, (todo, done) in enumerate(zip(table, rows, strict=True))
        if len(done) < len(todo)
    ]
    if stuck:
        raise ValueError(
            f"table: dead-lock, {'; '.join(stuck)}; each waits for what comes later in the table "
            "or is not in it"
        )
    return rows


def makespan(table: Sequence[Sequence[Action]], forward_s: Seconds, backward_s: Seconds) -> float:
    """Return the seconds from the first action's start to the last one's end; see simulate."""
    rows = simulate(table, forward_s, backward_s)
    return max((end for row in rows for _, _, end in row), default=0.0)


def _needs(action: Action, stages: int) -> list[Action]:
    kind, stage, micro_batch = action
    if kind == "F":
        return [Action("F", stage - 1, micro_batch)] if stage else []
    own = Action("F", stage, micro_batch)
    return [own] if stage == stages - 1 else [own, Action("B", stage + 1, micro_batch)]


def _seconds(action: Action, forward_s: Seconds, backward_s: Seconds) -> float:
    seconds = forward_s if action.kind == "F" else backward_s
    if callable(seconds):
        return seconds(action.stage, action.micro_batch)
    return seconds[action.stage]
