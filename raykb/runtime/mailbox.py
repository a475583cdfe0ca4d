"""The way of figures and failures from the workers to the driver, which alone talks to the tracker.

This file imports next to nothing: its process starts while those of the first workers do.
"""

import contextlib
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ANSWER_S = 60.0


class Letter(NamedTuple):
    """What a worker says of its training after some steps.

    Attributes:
        name: the job's.
        step: optimizer steps done.
        steps: of the whole training.
        figures: means since the last letter.
        note: what a person is to know now; lines.
    """

    name: str
    step: int
    steps: int
    figures: dict[str, float]
    note: str = ""


class Failure(NamedTuple):
    """What a worker says of an exception before it raises it.

    Attributes:
        name: the job's.
        rank: the worker's.
        lost: whether a process, a node or a peer was lost; anything else is a bug.
        kind: the exception's type, ``module.Name``.
        message: its text.
        where: lines that were added to it, ``stage 1, micro-batch 3, forward``.
        trace: its traceback, with those of its causes.
        pickled: the exception itself; None if it cannot be pickled.
    """

    name: str
    rank: int
    lost: bool
    kind: str
    message: str
    where: list[str]
    trace: str
    pickled: bytes | None


@ray.remote(num_cpus=0)
class Mailbox:
    """Takes what workers have to say, until the driver asks; only the driver talks to MLflow."""

    def __init__(self) -> None:
        self._letters: list[Letter | Failure] = []
        self._bugs: set[str] = set()
        self._closed = False

    def put(self, letter: Letter | Failure) -> None:
        """Keep a letter."""
        self._letters.append(letter)
        if isinstance(letter, Failure) and not letter.lost:
            self._bugs.add(letter.name)

    def take(self) -> list[Letter | Failure]:
        """Return the letters since the last call."""
        letters, self._letters = self._letters, []
        return letters

    def close(self) -> None:
        """Have no training begun again from now on."""
        self._closed = True

    def again(self, name: str) -> bool:
        """Return whether the job ``name`` may be begun again: nobody stopped it, and no bug did."""
        return not self._closed and name not in self._bugs


def open_mailbox() -> Any:
    """Return a mailbox on this host, which comes back empty should its process die."""
    return Mailbox.options(  # type: ignore[attr-defined]
        scheduling_strategy=on_this_host(), max_restarts=-1, max_task_retries=-1
    ).remote()


def taken(mailbox: Any) -> list[Letter | Failure]:
    """Return the letters since the last call; one that does not answer is begun anew, empty."""
    try:
        letters: list[Letter | Failure] = ray.get(mailbox.take.remote(), timeout=_ANSWER_S)
    except GetTimeoutError:
        ray.kill(mailbox, no_restart=False)
        return []
    return letters


def closed(mailbox: Any) -> None:
    """Have no training begun again from now on."""
    with contextlib.suppress(GetTimeoutError):
        ray.get(mailbox.close.remote(), timeout=_ANSWER_S)


def may_go_on(mailbox: Any, name: str) -> bool:
    """Return whether the job ``name`` may be begun again, as far as the mailbox knows."""
    try:
        return bool(ray.get(mailbox.again.remote(name), timeout=_ANSWER_S))
    except GetTimeoutError:
        return True


def on_this_host() -> NodeAffinitySchedulingStrategy:
    """Return what keeps a task or an actor on the driver's host, without which all is lost."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
