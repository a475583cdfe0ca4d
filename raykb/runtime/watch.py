"""A hang is a fault: what stands still for too long is ended, as if its process had died.

::

    process at work ── what it is at, and since when at most how long ──▶ board (shared memory)
                                                                            │ looked at each second
    stacks of its threads ◀── signal ──┐                                     ▼
                                       └─────────────────────────────── sentinel (a process)
    killed with SIGKILL ◀── after what hung, and where, was written to the run directory

The sentinel (:mod:`raykb.runtime.sentinel`) is a process beside each that works, since one that
was stopped by a signal, or holds the interpreter's lock in a loop in C, cannot watch itself. Who
takes up what died (Ray, a group, the search) takes up what was ended in this way, too.
"""

import contextlib
import faulthandler
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raykb
from raykb.engine.arguments import above, check_settings
from raykb.later import Later
from raykb.runtime.board import HUNG, SIZE, STACKS_SIGNAL, Board
from raykb.runtime.storage import Storage

modules = Later("torch.nn.modules.module")
_USUAL_OF = 31
_TOLD = 4000  # characters of a record that an error has


class Hung(Exception):
    """Work hung as often as it may be taken up again; the message says at what, and where."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When work is taken for hung; a section of the config.

    Args:
        times: a step, or the score of a candidate, may take so many times its usual time, the
            median of the last ones of its process.
        least_s: seconds that it may take in any case; also for how long a process may be stopped.
        first_s: seconds for what has no usual time: a start, the first step or score, saving, and
            the way from one forward pass of an evaluation to the next.
    """

    times: float = 20.0
    least_s: float = 300.0
    first_s: float = 1800.0

    def __post_init__(self) -> None:
        check_settings(self, times=above(1), least_s=above(0), first_s=above(0))


class Watch:
    """Says on a board what a process is at.

    Args:
        limits: of all kinds of work.
        board: where it stands.
        clock: seconds.
    """

    def __init__(
        self,
        limits: Limits,
        board: Board | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._board, self._clock = limits, board or Board(), clock
        self._last: deque[float] = deque(maxlen=_USUAL_OF)
        self._began = clock()
        self.rest()

    def rest(self) -> None:
        """Say that the process waits for work."""
        self._sign(math.inf, "at rest")

    def begin(self, what: str) -> None:
        """Say that a step, or what else is repeated, begins; it ends with :meth:`end`."""
        usual = statistics.median(self._last) if self._last else None
        told = "the first" if usual is None else f"usually {usual:.3g} s"
        self._began = self._clock()
        self._sign(self.limit_s(usual), f"{what} ({told})")

    def end(self) -> None:
        """Keep how long a step took."""
        self._last.append(self._clock() - self._began)

    def limit_s(self, usual: float | None) -> float:
        """Return how long a step may take that usually takes ``usual`` seconds."""
        if usual is None:
            return self._limits.first_s
        return max(self._limits.least_s, self._limits.times * usual)

    def single(self, what: str) -> None:
        """Say that something begins that has no usual time; what begins next ends it."""
        self._sign(self._limits.first_s, what)

    @contextlib.contextmanager
    def evaluation(self, what: str) -> Iterator[None]:
        """Say that networks are evaluated: each forward pass of a module is a sign of life."""
        with self._alive(self._limits.first_s, what):
            yield

    @contextlib.contextmanager
    def score(self, what: str) -> Iterator[None]:
        """Say that a candidate is scored, which is repeated, and forward passes are signs, too."""
        self.begin(what)
        with self._alive(*self._last_sign):
            yield
        self.end()
        self.rest()

    @contextlib.contextmanager
    def _alive(self, limit_s: float, what: str) -> Iterator[None]:
        self._sign(limit_s, what)
        hook = modules.register_module_forward_pre_hook(
            lambda module, inputs: self._sign(limit_s, what)
        )
        try:
            yield
        finally:
            hook.remove()

    def _sign(self, limit_s: float, what: str) -> None:
        self._last_sign = limit_s, what
        self._board.write(limit_s, what)


@contextlib.contextmanager
def watched(limits: Limits, storage: Storage | None, name: str) -> Iterator[Watch]:
    """Give a watch that a sentinel beside this process looks at, as long as the context lasts.

    Args:
        limits: of the work.
        storage: the run directory; None if a hang is told in the log of the process alone.
        name: of the work, unique in it: ``a/rank-0``; the record of a hang is below it.
    """
    board, stacks = os.memfd_create("raykb-board"), os.memfd_create("raykb-stacks")
    try:
        os.ftruncate(board, SIZE)
        watch = Watch(limits, Board(board))
        told = {"name": name, "least_s": limits.least_s, "uri": storage and storage.uri}
        faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True)
        try:
            with _sentinel(told, board, stacks):
                yield watch
        finally:
            faulthandler.unregister(STACKS_SIGNAL)
    finally:
        os.close(board)
        os.close(stacks)


@contextlib.contextmanager
def _sentinel(told: dict[str, Any], board: int, stacks: int) -> Iterator[None]:
    """Have a sentinel beside this process; what it is told shows in no list of processes."""
    sentinel = subprocess.Popen(
        [sys.executable, "-m", "raykb.runtime.sentinel"],
        pass_fds=(board, stacks),
        env=import_environment(),
        stdin=subprocess.PIPE,
        start_new_session=True,  # what is sent to all processes of the run is not meant for it
    )
    try:
        with sentinel.stdin as pipe:  # type: ignore[union-attr]
            told |= {"process": os.getpid(), "board": board, "stacks": stacks}
            pipe.write(json.dumps(told).encode())
        yield
    finally:
        sentinel.kill()
        sentinel.wait()


def import_environment() -> dict[str, str]:
    """Return the environment that brings raykb to a new process, wherever Ray put it."""
    paths = [str(Path(raykb.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def hangs(storage: Storage, name: str, since: float = 0.0) -> list[str]:
    """Return what hung of a piece of work, the last one last.

    Args:
        storage: the run directory.
        name: of the work, without what tells its processes apart.
        since: seconds since 1970, as whoever wrote it knew them.
    """
    folder, first = f"{HUNG}/{name}", time.strftime("%Y%m%d-%H%M%S", time.gmtime(since))
    return [
        f"{storage.read(f'{folder}/{file}').decode()}\n({folder}/{file})"
        for file in storage.files(folder)
        if file >= first
    ]


def hung(storage: Storage, name: str, since: float) -> Hung | None:
    """Return the error of work that was lost, if what it was lost by was a hang."""
    told = hangs(storage, name, since)
    if not told:
        return None
    last = told[-1] if len(told[-1]) < _TOLD else f"{told[-1][:_TOLD]} …"
    return Hung(f"{name}: hung {len(told)} times; see to what it waits for. The last time, {last}")
