"""What a run needs against what there is: refused with numbers, never waited for in silence."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
import torch

from raykb.config import Section, build
from raykb.engine.arguments import among, at_least, check_settings, misfits, or_none, refuse

_LOOK_S = 2.0
LEFT_S = 60.0
"""Seconds for which a phase may be without a place before its run gives up."""


class ResourceError(Exception):
    """A run needs more than the cluster has."""


@dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """What each unit of one kind of work takes; a section of the config.

    Args:
        cpus: CPUs of one worker, at least 1; its threads as well.
        gpus: GPUs of one worker; a share below 1 lets several of them use one GPU.
        workers: processes of one training; 1 runs it as a Ray task, more as a Ray Train job.
        side_by_side: how many such units may run at once; null for as many as fit.
    """

    cpus: int = 1
    gpus: float = 0.0
    workers: int = 1
    side_by_side: int | None = None

    def __post_init__(self) -> None:
        rules = {"cpus": at_least(1), "gpus": at_least(0), "workers": at_least(1)}
        check_settings(self, **rules, side_by_side=or_none(at_least(1)))

    @property
    def device(self) -> str:
        """The torch device of one worker."""
        return "cuda" if self.gpus else "cpu"


WORKERS = Section(WorkerResources, renamed={"at_most": "side_by_side"})
"""The section of a schema that says what one unit takes."""


def workers_of(config: Mapping[str, Any]) -> dict[str, WorkerResources]:
    """Return what one unit of each kind of work takes, by name of the section in ``resources``."""
    return {name: build(WorkerResources, part) for name, part in config["resources"].items()}


@dataclass(frozen=True, kw_only=True)
class DataResources:
    """What is kept free for data workers; a section of the config.

    Args:
        cpus: CPUs beside each worker of a training; 0 lets data workers share the trainings' CPUs.
    """

    cpus: int = 1

    def __post_init__(self) -> None:
        check_settings(self, cpus=at_least(0))

    def beside(self, each: WorkerResources) -> dict[str, WorkerResources] | None:
        """Return what a training of such workers has beside it."""
        count = self.cpus * each.workers
        return {"data workers": WorkerResources(workers=count)} if count else None


@dataclass(frozen=True, kw_only=True)
class Group:
    """How the workers of one training stand together; counts where there are several.

    Args:
        place: ``pack`` them on few nodes, or ``spread`` them over many.
        timeout_s: seconds that a collective operation waits for a peer.
        wait_s: seconds to wait for places for all of them, before each attempt.
        fewer: smaller numbers of workers that the training can go on with when nodes are lost;
            empty if it needs all of them.
    """

    place: Literal["pack", "spread"] = "pack"
    timeout_s: int = 300
    wait_s: float = 60.0
    fewer: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rules = {"timeout_s": at_least(1), "wait_s": at_least(0)}
        problems = misfits(self, place=among("pack", "spread"), **rules)
        if any(size < 1 for size in self.fewer):
            problems.append(f"fewer: {self.fewer!r}, must be numbers from 1 on")
        refuse(problems)


@dataclass(frozen=True)
class Node:
    """What one host gives."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Phase:
    """A part of a run: ``units`` equal pieces of work, of which several may run at once.

    Attributes:
        name: as the user knows it, ``theta trainings``.
        units: how many pieces there are in all.
        each: what one piece takes.
        beside: what must run at the same time as each of them (data workers), by name.
    """

    name: str
    units: int
    each: WorkerResources
    beside: Mapping[str, WorkerResources] | None = None


def this_host() -> list[Node]:
    """Return this host as a cluster of one node."""
    return [Node(float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count()))]


def cluster() -> list[Node]:
    """Return the living nodes of the cluster that this process is connected to."""
    return [
        Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _packed(nodes: Sequence[Node], piece: Sequence[WorkerResources], limit: int) -> int:
    """Return how many pieces, each of several workers, fit side by side (first fit)."""
    free = [[node.cpus, node.gpus] for node in nodes]
    for count in range(limit):
        for worker in piece:
            for slot in free:
                if slot[0] >= worker.cpus and slot[1] >= worker.gpus - 1e-9:
                    slot[0] -= worker.cpus
                    slot[1] -= worker.gpus
                    break
            else:
                return count
    return limit


def fit(count: int, each: WorkerResources, nodes: Sequence[Node]) -> bool:
    """Return whether ``count`` such workers could run at once if ``nodes`` did nothing else."""
    return _packed(nodes, [each] * count, 1) == 1


def plan(phases: Sequence[Phase], nodes: Sequence[Node]) -> dict[str, int]:
    """Return how many pieces of each phase run side by side on ``nodes``.

    Raises:
        ResourceError: not even one piece of some phase fits; all such phases are named.
    """
    parallel, problems = {}, []
    for phase in phases:
        piece = [phase.each] * phase.each.workers
        for extra in (phase.beside or {}).values():
            piece += [extra] * extra.workers
        limit = min(phase.units, phase.each.side_by_side or phase.units)
        parallel[phase.name] = _packed(nodes, piece, limit)
        if limit and not parallel[phase.name]:
            problems.append(f"{phase.name}: one needs {needs(phase)}")
    if problems:
        raise ResourceError(
            "this run needs more than the cluster has:\n  "
            + "\n  ".join(problems)
            + f"\nThere is {describe(nodes)}. Lower `resources` (--set resources.…), or add nodes."
        )
    return parallel


class Plan(Mapping[str, int]):
    """How many pieces of each phase run side by side, on the nodes that are there when it is asked.

    Args:
        phases: of the run.
        say: is told of each change of the cluster.
        look: returns its nodes.
        clock: seconds.
        patience_s: for how long a phase may be without a place before that is an error.

    Raises:
        ResourceError: not even one piece of some phase fits.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        *,
        say: Callable[[str], None],
        look: Callable[[], list[Node]] = cluster,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = LEFT_S,
    ) -> None:
        self._patience_s = patience_s
        self._phases = {phase.name: phase for phase in phases}
        self._say, self._look, self._clock = say, look, clock
        self._nodes, self._looked = look(), clock()
        self._found = plan(phases, self._nodes)
        self._fitted = dict.fromkeys(self._phases, self._looked)

    def __getitem__(self, name: str) -> int:
        """Return how many pieces of a phase run side by side; of what has no place now, one.

        Raises:
            ResourceError: it has had no place for too long, and no fewer workers will do.
        """
        phase, now = self._phases[name], self._clock()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            nodes, before = self._look(), self._nodes
            self._renew(nodes, now)
            if nodes != before:
                self._say(f"there is now {describe(nodes)}; {name}: {self._found[name]} at once")
        if now - self._fitted[name] > self._patience_s and phase.each.workers == 1:
            raise ResourceError(
                f"{name}: one needs {needs(phase)}, and for {now - self._fitted[name]:.0f} s there "
                f"was {describe(self._nodes)}; go on with --resume when the nodes are back"
            )
        return self._found[name]

    def _renew(self, nodes: list[Node], now: float) -> None:
        self._nodes = nodes
        for name, phase in self._phases.items():
            try:
                self._found |= plan([phase], nodes)
                self._fitted[name] = now
            except ResourceError:
                self._found[name] = 1

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def needs(phase: Phase) -> str:
    """Return what one piece of ``phase`` takes, in words."""
    parts = [_amount(phase.each.cpus, phase.each.gpus, phase.each.workers)]
    parts += [
        f"{_amount(extra.cpus, extra.gpus, extra.workers)} for {name}"
        for name, extra in (phase.beside or {}).items()
    ]
    return " + ".join(parts)


def describe(nodes: Sequence[Node]) -> str:
    """Return what the nodes have, in words."""
    return (
        f"{len(nodes)} node{'s' * (len(nodes) != 1)}"
        + " with " * bool(nodes)
        + " | ".join(_amount(node.cpus, node.gpus) for node in nodes)
    )


def _amount(cpus: float, gpus: float, count: int = 1) -> str:
    each = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    return each if count == 1 else f"{count} x ({each})"
