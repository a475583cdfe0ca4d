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

Two schedules split the backward pass (Qi et al., "Zero bubble pipeline parallelism", arXiv
2401.10241): I3 is the gradient of micro-batch 3's inputs, for which the stage before waits, W3 that
of the weights, for which nobody does, so that it fills what would be bubble. ``zero_bubble``
(ScheduleInterleavedZeroBubble, the paper's ZB1P) places stages as ``interleaved`` does, ``zbv``
(ScheduleZBVZeroBubble, section 6) in a V: worker r holds the stages r and 2n - 1 - r. On the first
stage, whose inputs need no gradient, torch does nothing for I and all for W.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

SCHEDULES = ("gpipe", "gpipe_fifo", "1f1b", "interleaved", "zero_bubble", "zbv")
SPLIT = ("zero_bubble", "zbv")
"""Schedules whose backward passes are two, I and W."""

_SEVERAL_STAGES = ("gpipe", "interleaved", "zero_bubble", "zbv")  # those that workers may hold
_IN_ROUNDS = ("interleaved", "zero_bubble")  # of micro-batches, as many as there are workers

Seconds: TypeAlias = Sequence[float] | Callable[[int, int], float]
"""Seconds of one pass of a stage: by stage, or a function of (stage, micro-batch)."""


class Action(NamedTuple):
    """One pass of one micro-batch through one stage.

    Forward (F), backward (B), or of a backward pass in two parts that of the inputs (I) or that of
    the weights (W).
    """

    kind: Literal["F", "B", "I", "W"]
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
            f"{', '.join(_SEVERAL_STAGES[:-1])} and {_SEVERAL_STAGES[-1]} allow more"
        )
    if stages_per_worker != 2 and schedule == "zbv":
        found.append(
            f"stages_per_worker: {stages_per_worker}, must be 2 with the schedule zbv; zero_bubble "
            "allows any number"
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
    if schedule in _IN_ROUNDS and micro_batches % rounds:
        fitting = micro_batches // workers * workers
        found.append(
            f"micro_batches: {micro_batches}, the schedule {schedule} takes them in {rounds} "
            f"equal rounds over {workers} workers; take {fitting}, or the schedule gpipe"
        )
    return found


def worker_of(stage: int, workers: int, schedule: str) -> int:
    """Return which worker holds a stage: round after round, or with ``zbv`` there and back."""
    turn, place = divmod(stage, workers)
    return workers - 1 - place if schedule == "zbv" and turn % 2 else place


def stages_of(worker: int, stages: int, workers: int, schedule: str) -> list[int]:
    """Return the stages that a worker holds, in order."""
    return [stage for stage in range(stages) if worker_of(stage, workers, schedule) == worker]


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
    if schedule == "1f1b":
        return [_one_forward_one_backward(r, workers, micro_batches) for r in range(workers)]
    if schedule == "zbv":
        return [_v_shaped(r, workers, micro_batches) for r in range(workers)]
    held = [stages_of(worker, stages, workers, schedule) for worker in range(workers)]
    if schedule == "interleaved":
        return [_interleaved(own, workers, micro_batches) for own in held]
    if schedule == "zero_bubble":
        return [_zero_bubble(own, workers, micro_batches) for own in held]
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
    places, size = _in_rounds(own, workers, micro_batches)
    back, _ = _in_rounds(own[::-1], workers, micro_batches)
    ahead = (len(own) - 1) * size + 2 * (workers - 1 - own[0])
    forward, backward = [Action("F", *place) for place in places], [Action("B", *p) for p in back]
    return _alternate(forward, backward, ahead=ahead)


def _in_rounds(
    own: Sequence[int], workers: int, micro_batches: int
) -> tuple[list[tuple[int, int]], int]:
    """Return (stage, micro-batch) in the order of the rounds, and the micro-batches of a round."""
    size = micro_batches // max(1, micro_batches // workers)
    rounds = [range(i, i + size) for i in range(0, micro_batches, size)]
    return [(stage, i) for part in rounds for stage in own for i in part], size


def _zero_bubble(own: Sequence[int], workers: int, micro_batches: int) -> list[Action]:
    """Run as interleaved; worker r leaves the weights of r passes for the end, where it waits."""
    places, size = _in_rounds(own, workers, micro_batches)
    back, _ = _in_rounds(own[::-1], workers, micro_batches)
    worker = own[0]
    ahead = (len(own) - 1) * size + workers - 1 - worker
    forward, inputs = [Action("F", *place) for place in places], [Action("I", *p) for p in back]
    late = [None] * min(worker, len(back))
    weights = iter([*late, *(Action("W", *place) for place in back)])
    found: list[Action | None] = []
    for action in _alternate(forward, inputs, ahead=ahead):
        found += [action] if action.kind == "F" else [action, next(weights)]
    return [action for action in [*found, *weights] if action is not None]


def _v_shaped(worker: int, workers: int, micro_batches: int) -> list[Action]:
    """Fill the V, run each pass as it comes, and leave weights for where it waits at the end."""
    there, back = worker, 2 * workers - 1 - worker  # its stages
    most = max(micro_batches, 2 * workers - 1)  # fewer are a part of so many
    behind = workers - worker
    whole = most - (2 * workers - 1 - worker)  # rounds that have a forward pass of both stages
    order = "F" * (2 * behind - 1) + "fF" * worker + "fiw" * behind
    order += "FIWfiw" * whole + "IWfiw" * (most - workers - whole)
    order += "Ii" * worker + "IW" * behind + "w" * worker + "W" * worker
    counts: Counter[str] = Counter()
    found = []
    for letter in order:  # a capital stands for the way there
        kind: Any = letter.upper()
        found.append(Action(kind, there if letter == kind else back, counts[letter]))
        counts[letter] += 1
    return [action for action in found if action.micro_batch < micro_batches]


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


def bubble_utilisation(
    workers: int, micro_batches: int, stages_per_worker: int = 1, schedule: str = "gpipe"
) -> float:
    """Return the share of the time in which balanced workers are busy: v m / (v m + n - 1).

    Where the backward pass is split and F, I and W take as long, workers wait for n - 1 of these
    passes, a third of the work on a micro-batch: 3 v m / (3 v m + n - 1).

    Args:
        workers: n.
        micro_batches: m.
        stages_per_worker: v; with several it is a bound that is reached where n divides m, with
            ``zbv`` where m is at least 2 n - 1.
        schedule: one of :data:`SCHEDULES`.
    """
    work = stages_per_worker * micro_batches * (3 if schedule in SPLIT else 1)
    return work / (work + workers - 1)


def simulate(
    table: Sequence[Sequence[Action]],
    forward_s: Seconds,
    backward_s: Seconds,
    weight_s: Seconds | None = None,
) -> list[list[tuple[Action, float, float]]]:
    """Return when each worker runs each of its actions if messages take no time.

    An action starts as soon as its worker is free and what it needs is there: F the output of the
    stage before, B and I the stage's own F and the gradient from the stage behind, W its own I.

    Args:
        table: the actions of each worker in order, as :func:`actions` gives them.
        forward_s: seconds of the forward pass of one micro-batch.
        backward_s: seconds of its backward pass, with recomputation.
        weight_s: seconds of the part of it that is W, where it is split; by default the half, as of
            a linear layer, and all of it on the first stage.

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
                ends[action] = start + _seconds(action, forward_s, backward_s, weight_s)
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


def makespan(
    table: Sequence[Sequence[Action]],
    forward_s: Seconds,
    backward_s: Seconds,
    weight_s: Seconds | None = None,
) -> float:
    """Return the seconds from the first action's start to the last one's end; see simulate."""
    rows = simulate(table, forward_s, backward_s, weight_s)
    return max((end for row in rows for _, _, end in row), default=0.0)


def _needs(action: Action, stages: int) -> list[Action]:
    kind, stage, micro_batch = action
    if kind == "F":
        return [Action("F", stage - 1, micro_batch)] if stage else []
    if kind == "W":
        return [Action("I", stage, micro_batch)]
    own = Action("F", stage, micro_batch)
    return [own] if stage == stages - 1 else [own, Action(kind, stage + 1, micro_batch)]


def _seconds(
    action: Action, forward_s: Seconds, backward_s: Seconds, weight_s: Seconds | None
) -> float:
    if action.kind == "F":
        return _at(forward_s, action)
    backward = _at(backward_s, action)
    if action.kind == "B":
        return backward
    if weight_s is not None:
        weight = _at(weight_s, action)
    else:
        weight = backward / 2 if action.stage else backward
    return weight if action.kind == "W" else backward - weight


def _at(seconds: Seconds, action: Action) -> float:
    if callable(seconds):
        return seconds(action.stage, action.micro_batch)
    return seconds[action.stage]
