"""When each stage ran what: as a trace to look at, and as figures of what was lost.

Three factors say where the time of a step went; pipeline_theory's "close to the physical limit"
asks for the third to be at least 0.9:

    bubble   = v m / (v m + n - 1)                  what filling and draining cost, by arithmetic
    balance  = mean / maximum over workers of       what uneven stages cost: the slowest rules
               the sum of t_f + t_b of their actions
    runtime  = ideal makespan / measured one        what waiting, messages and the rest cost

with n workers of v stages, m micro-batches and t_f, t_b a stage's median seconds of a forward and
a backward pass (with recomputation) of one micro-batch. The ideal makespan is that of the
schedule's table with these times and free messages. For equal stages the product of the three is
the utilisation, the share of the time in which workers run an action; for unequal ones it is near
it, since filling and draining pass through the faster stages, too. Stages that share cores slow
each other down, and the ideal, made of the times measured, with them: judge that by throughput.
"""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from raykb.gpipe.schedule import (
    Action,
    actions,
    bubble_utilisation,
    exempt,
    makespan,
    simulate,
)


class Span(NamedTuple):
    """When an action ran, in seconds of one clock that all workers share."""

    kind: str
    stage: int
    micro_batch: int
    start_s: float
    end_s: float


_CATEGORIES = {"F": "forward", "B": "backward", "I": "backward, inputs", "W": "backward, weights"}


def simulated(
    schedule: str,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    *,
    micro_batches: int,
    checkpoint: str = "never",
    stages_per_worker: int = 1,
) -> list[list[Span]]:
    """Return the spans of a step as they would be if messages took no time.

    Args:
        schedule: one of :data:`raykb.gpipe.schedule.SCHEDULES`.
        forward_s: each stage's seconds of the forward pass of one micro-batch.
        backward_s: of its backward pass, without recomputation.
        micro_batches: of the step.
        checkpoint: ``always``, ``except_last`` or ``never``: whose backward passes recompute.
        stages_per_worker: stages that each worker holds.

    Returns:
        Spans of each worker, in order.

    Raises:
        ValueError: the schedule cannot run so, or the mode is unknown.
    """
    keeping = exempt(checkpoint, schedule, micro_batches)
    table = actions(schedule, len(forward_s), micro_batches, stages_per_worker)

    def backward(stage: int, micro_batch: int) -> float:
        again = 0.0 if micro_batch in keeping else forward_s[stage]
        return backward_s[stage] + again

    rows = simulate(table, forward_s, backward)
    return [[Span(*action, start, end) for action, start, end in row] for row in rows]


def chrome_trace(spans_by_worker: Sequence[Sequence[Span]]) -> str:
    """Return a trace for Perfetto or ``chrome://tracing``: a process a worker, a row a stage.

    Args:
        spans_by_worker: of any number of steps; the first action's start is time 0.

    Returns:
        JSON in Chrome's trace event format, times in microseconds.
    """
    zero = min((span.start_s for spans in spans_by_worker for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for worker, spans in enumerate(spans_by_worker):
        events.append(_label("process", f"worker {worker}", worker, 0))
        for stage in sorted({span.stage for span in spans}):
            events.append(_label("thread", f"stage {stage}", worker, stage))
        events += [
            {
                "ph": "X",
                "name": f"{span.kind}{span.micro_batch}",
                "cat": _CATEGORIES[span.kind],
                "pid": worker,
                "tid": span.stage,
                "ts": 1e6 * (span.start_s - zero),
                "dur": 1e6 * (span.end_s - span.start_s),
                "args": {"stage": span.stage, "micro_batch": span.micro_batch},
            }
            for span in spans
        ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _label(what: str, name: str, process: int, thread: int) -> dict[str, Any]:
    args = {"name": name}
    return {"ph": "M", "name": f"{what}_name", "pid": process, "tid": thread, "args": args}


def efficiency(
    spans_by_worker: Sequence[Sequence[Span]],
    schedule: str,
    *,
    checkpoint: str = "never",
    step_s: float | None = None,
) -> dict[str, float]:
    """Return how well one step used its workers, and what the rest was lost to.

    Args:
        spans_by_worker: the spans of one step of each worker, or :func:`simulated` ones for a
            prediction. They tell the numbers of stages and of micro-batches.
        schedule: that the step ran.
        checkpoint: ``always``, ``except_last`` or ``never``; the medians of micro-batches that
            recompute and of those that do not are taken apart.
        step_s: seconds of the step where more was measured than its actions, such as the
            optimizer's update; by default from the first action's start to the last one's end.

    Returns:
        ``bubble``, ``balance``, ``runtime`` and ``utilisation``, shares; ``makespan_s``, that of
        the step, and ``ideal_s``, that without losses at run time. See the module.

    Raises:
        ValueError: the spans are not those of one whole step, the schedule cannot run so, or the
            mode is unknown.
    """
    spans = [span for own in spans_by_worker for span in own]
    workers = len(spans_by_worker)
    stages = 1 + max((span.stage for span in spans), default=0)
    micro_batches = 1 + max((span.micro_batch for span in spans), default=0)
    per_worker = max(1, stages // max(1, workers))
    table = actions(schedule, stages, micro_batches, per_worker)
    _check(spans_by_worker, table)
    keeping = exempt(checkpoint, schedule, micro_batches)
    measured: dict[tuple[str, int, bool], list[float]] = defaultdict(list)
    for kind, stage, micro_batch, start, end in spans:
        measured[kind, stage, micro_batch in keeping].append(end - start)
    median_s = {key: statistics.median(values) for key, values in measured.items()}

    def forward_s(stage: int, micro_batch: int) -> float:
        return median_s["F", stage, micro_batch in keeping]

    def backward_s(stage: int, micro_batch: int) -> float:  # whole, or in its two parts
        kept = micro_batch in keeping
        return sum(median_s.get((kind, stage, kept), 0.0) for kind in "BIW")

    def weight_s(stage: int, micro_batch: int) -> float:
        return median_s["W", stage, micro_batch in keeping]

    loads = [sum(median_s[kind, stage, i in keeping] for kind, stage, i in row) for row in table]
    took = max(span.end_s for span in spans) - min(span.start_s for span in spans)
    took = took if step_s is None else step_s
    ideal = makespan(table, forward_s, backward_s, weight_s)
    return {
        "bubble": bubble_utilisation(workers, micro_batches, per_worker, schedule),
        "balance": statistics.mean(loads) / max(loads),
        "runtime": ideal / took,
        "utilisation": sum(span.end_s - span.start_s for span in spans) / (workers * took),
        "makespan_s": took,
        "ideal_s": ideal,
    }


def _check(spans_by_worker: Sequence[Sequence[Span]], table: Sequence[Sequence[Action]]) -> None:
    """Refuse spans that are not each of the table's actions once, on its worker."""
    if len(spans_by_worker) != len(table):
        raise ValueError(
            f"spans_by_worker: of {len(spans_by_worker)} workers, must be of {len(table)}, as the "
            "spans' stages are; give the spans of all workers"
        )
    problems = []
    for worker, (spans, row) in enumerate(zip(spans_by_worker, table, strict=True)):
        seen = Counter(Action(*span[:3]) for span in spans)  # type: ignore[arg-type]
        wrong = sorted((seen - Counter(row)) + (Counter(row) - seen))
        if wrong:
            problems.append(
                f"spans_by_worker: {len(spans)} of worker {worker}, must be each of its "
                f"{len(row)} actions once (see {wrong[0]}); give one whole step"
            )
    if problems:
        raise ValueError("\n".join(problems))
