"""Nodes that come when work waits for them: asked for, and waited for with a limit and in words.

A cluster of a cloud is best empty between runs. The start of its head says by
``RAYKB_WAIT_FOR_NODES_S`` how long a run waits for nodes there; where nothing is said, a run is
planned on those that it finds, or refused at once.

    asked for         tasks that take the places, so that the autoscaler sees them wait
    all have come     each phase runs as much side by side as it may
    enough have come  one piece of each phase fits, and no node has come for a while
    too few           the limit is over; the plan refuses, with the numbers
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray

from raykb.engine.arguments import at_least
from raykb.runtime.resources import Node, Phase, ResourceError, cluster, describe, needs, plan
from raykb.runtime.session import Refused

LIMIT = "RAYKB_WAIT_FOR_NODES_S"
"""The variable that says for how many seconds a run waits for nodes."""

SETTLED_S = 60.0
"""Seconds without a new node after which those that have come are enough, if they are."""

_LOOK_S = 2.0
_MOST_PLACES = 256  # asked for at once
_EVERY_S = 30.0  # a line


def awaited(phases: Sequence[Phase], tell: Callable[[str], None] | None = None) -> list[Node]:
    """Return the nodes of the cluster, once those have come that the phases have use for.

    Args:
        phases: of the run.
        tell: is called with a line now and then; None prints it.

    Raises:
        Refused: the limit is no number of seconds.
    """
    most_s, nodes = limit_s(), cluster()
    if not most_s or _full(phases, nodes):
        return nodes
    tell = tell or (lambda line: print(line, file=sys.stderr, flush=True))
    places = _asked(phases)
    try:
        return _come(phases, nodes, most_s, tell)
    finally:
        for place in places:
            ray.cancel(place, force=True)


def limit_s() -> float:
    """Return the limit; raises Refused where it is no number of seconds."""
    said = os.environ.get(LIMIT, "") or "0"
    try:
        seconds = float(said)
    except ValueError:
        seconds = float("nan")
    if not at_least(0).holds(seconds):
        raise Refused(f"{LIMIT}: {said!r}, must be a number of seconds, at least 0")
    return seconds


def _come(
    phases: Sequence[Phase], nodes: list[Node], most_s: float, tell: Callable[[str], None]
) -> list[Node]:
    """Look at the nodes until all have come, or enough and no more, or the limit is over."""
    began = came = said = time.monotonic()
    wanted = "; ".join(f"{_most(phase)} x {needs(phase)}" for phase in phases if phase.units)
    tell(f"waiting up to {most_s:g} s for nodes, for {wanted}; there is {describe(nodes)}")
    while not _full(phases, nodes):
        time.sleep(_LOOK_S)
        before, nodes, now = nodes, cluster(), time.monotonic()
        if len(nodes) > len(before):
            came = now
        if now - began > most_s or (now - came > SETTLED_S and _fits(phases, nodes)):
            break
        if len(nodes) != len(before) or now - said > _EVERY_S:
            said = now
            tell(f"waiting for nodes, {now - began:.0f} of {most_s:g} s: {describe(nodes)}")
    tell(f"goes on with {describe(nodes)}")
    return nodes


def _most(phase: Phase) -> int:
    """Return how many pieces of a phase may run side by side."""
    return min(phase.units, phase.each.side_by_side or phase.units)


def _full(phases: Sequence[Phase], nodes: Sequence[Node]) -> bool:
    """Return whether more nodes would be of no use."""
    try:
        parallel = plan(phases, nodes)
    except ResourceError:
        return False
    return all(parallel[phase.name] == _most(phase) for phase in phases)


def _fits(phases: Sequence[Phase], nodes: Sequence[Node]) -> bool:
    """Return whether a piece of each phase fits."""
    try:
        plan(phases, nodes)
    except ResourceError:
        return False
    return True


def _asked(phases: Sequence[Phase]) -> list[Any]:
    """Take the places that the phase with most of them needs, of each size; return who holds them.

    They are tasks of this driver, and gone with it however it ends: what is asked of Ray's
    autoscaler itself is kept, and paid for, until somebody asks otherwise.
    """
    wanted: Counter[tuple[float, float]] = Counter()
    for phase in phases:
        own: Counter[tuple[float, float]] = Counter()
        for worker in (phase.each, *(phase.beside or {}).values()):
            own[worker.cpus, worker.gpus] += worker.workers * _most(phase)
        wanted |= own  # the larger number of each size
    holding = ray.remote(max_retries=0)(_hold)
    return [
        holding.options(num_cpus=cpus, num_gpus=gpus).remote()
        for (cpus, gpus), count in wanted.items()
        for _ in range(min(count, _MOST_PLACES))
    ]


def _hold() -> None:
    """Hold a place until it is taken back."""
    while True:
        time.sleep(1.0)
