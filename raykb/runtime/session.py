"""A run under way, as a script sees it."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raykb.config import flatten
from raykb.runtime.mailbox import Letter
from raykb.runtime.progress import Progress
from raykb.runtime.resources import WorkerResources
from raykb.runtime.storage import LocalStorage, Storage
from raykb.runtime.studies import Candidate
from raykb.runtime.tracking import Run, Tracker
from raykb.runtime.train import Result, train, warm
from raykb.runtime.tune import search
from raykb.runtime.work import TrainJob


class Refused(Exception):
    """The run must not start; the message says why and what to do."""


@dataclass
class Session:
    """A run under way, as a script sees it.

    Attributes:
        config: the resolved configuration.
        recorded: the one that the run began with, which its parameters are in the tracker.
        storage: the run directory.
        parallel: pieces of each phase that run side by side, from the plan.
        parent: the parent run in the tracker.
        tracker: makes child runs.
        written: names of the files that the script wrote.
        files: where this host has the run's files for the tracker to send.
    """

    config: dict[str, Any]
    recorded: dict[str, Any]
    storage: Storage
    parallel: Mapping[str, int]
    parent: Run
    tracker: Tracker
    files: Path
    written: list[str] = field(default_factory=list)
    _children: dict[str, Run] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Tell the user what happens now."""
        print(text, file=sys.stderr, flush=True)

    def warm(self, phase: str, build: Callable[..., Any], each: WorkerResources) -> None:
        """Have the workers of ``phase`` import what ``build`` needs while the driver goes on."""
        warm(build, self.parallel[phase], each)

    @contextlib.contextmanager
    def reading(self, section: str) -> Iterator[None]:
        """Turn errors of the input that a section of the config names into a refusal."""
        try:
            yield
        except (ValueError, OSError) as error:
            raise Refused(f"{section}: {error}") from error

    def child(self, name: str, *, phase: str, params: Mapping[str, Any] | None = None) -> Run:
        """Return the child run ``name``; it has the parent's parameters and ``params``.

        One of ``params`` stands for the whole section of its name: a child whose ``method`` is
        another than the parent's has nothing of the parent's ``method.*``.
        """
        if name not in self._children:
            own = dict(params or {})
            inherited = {
                key: value
                for key, value in flatten(self.recorded).items()
                if key.partition(".")[0] not in own
            }
            self._children[name] = self.tracker.run(
                name,
                name=name,
                parent=self.parent,
                params=inherited | own,
                tags={"raykb.phase": phase},
            )
        return self._children[name]

    def write(self, name: str, data: bytes | str) -> None:
        """Write a file of the run directory, and log it to the parent run."""
        data = data.encode() if isinstance(data, str) else data
        self.storage.write(name, data)
        if not isinstance(self.storage, LocalStorage):
            LocalStorage(self.files).write(name, data)  # the tracker sends files of this host
        self.parent.artifact(self.files / name)
        self.written.append(name)

    def train(
        self,
        phase: str,
        jobs: Sequence[TrainJob],
        each: WorkerResources,
    ) -> list[Result]:
        """Run ``jobs`` with progress, each with a child run; see :func:`raykb.runtime.train.train`.

        Args:
            phase: its name in the plan.
            jobs: the trainings.
            each: what one of them takes.
        """
        self.tracker.ready(5.0)  # database and parent run are there before anything fans out
        share = {job.name: 0.0 for job in jobs}
        runs = {job.name: self.child(job.name, phase=phase, params=job.params) for job in jobs}
        alone = len(jobs) == 1
        with Progress(phase, 100 if alone else len(jobs), "%" if alone else "") as progress:

            def show(note: str = "") -> None:
                done = sum(share.values())
                progress.update(round(100 * done) if alone else done, note)

            def on_letter(letter: Letter) -> None:
                runs[letter.name].log(letter.step, letter.figures)
                for line in letter.note.splitlines():
                    self.say(f"{letter.name}: {line}")
                share[letter.name] = max(share[letter.name], letter.step / letter.steps * 0.999)
                loss = letter.figures.get("train/loss")
                show(f"loss {loss:.3g}" if alone and loss is not None else "")

            def on_result(result: Result) -> None:
                runs[result.name].log(result.steps, result.metrics)
                runs[result.name].finish()
                share[result.name] = 1.0
                show()

            return train(
                jobs,
                storage=self.storage,
                resources=each,
                parallel=self.parallel[phase],
                on_letter=on_letter,
                on_result=on_result,
            )

    def search(
        self, phase: str, total: int, on_told: Callable[[Candidate], None], **arguments: Any
    ) -> list[Candidate]:
        """Search with progress; see :func:`raykb.runtime.tune.search`."""
        with Progress(phase, total, "") as progress:
            told = 0

            def count(candidate: Candidate) -> None:
                nonlocal told
                told += 1
                on_told(candidate)
                progress.update(told)

            return search(
                storage=self.storage, parallel=self.parallel[phase], on_told=count, **arguments
            )
