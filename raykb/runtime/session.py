"""A run under way, as a script sees it."""

import contextlib
import dataclasses
import functools
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from raykb.comparison import Comparison, Entry
from raykb.config import build, flatten
from raykb.data.images import ImageSet
from raykb.engine.foreign import parsed
from raykb.later import Later
from raykb.runtime.mailbox import Letter
from raykb.runtime.progress import Progress
from raykb.runtime.resources import WorkerResources
from raykb.runtime.run_files import TASK
from raykb.runtime.secrets import redacted
from raykb.runtime.storage import LocalStorage, Storage
from raykb.runtime.studies import Candidate, Study, searched
from raykb.runtime.tracking import COMPARED, LABEL, Run, Tracker
from raykb.runtime.train import Result, call, share, train, warm
from raykb.runtime.watch import Limits
from raykb.runtime.work import TrainJob

tuning, report = Later("raykb.runtime.tune"), Later("raykb.report")
OnFailure = Literal["stop", "hole"]


class Recorded(Protocol):
    """What can be made again from a record of itself."""

    def record(self) -> str:
        """Return the record."""
        ...


RecordedT = TypeVar("RecordedT", bound=Recorded)


class Refused(Exception):
    """The run must not start; the message says why and what to do."""


def rows_of(results: Sequence[tuple[Entry, Result]]) -> list[dict[str, Any]]:
    """Return what trainings found, as tables have it."""
    return [
        {"label": entry.label, "seed": entry.number, "steps": result.steps} | result.metrics
        for entry, result in results
    ]


def search(**arguments: Any) -> list[Candidate]:
    """Search; see :func:`raykb.runtime.tune.search`."""
    found: list[Candidate] = tuning.search(**arguments)
    return found


@dataclass(frozen=True)
class Machine:
    """Who does a session's work: by default Ray.

    Attributes:
        train: runs trainings, as :func:`raykb.runtime.train.train`.
        search: runs studies, as :func:`raykb.runtime.tune.search`.
        call: runs a function once, as :func:`raykb.runtime.train.call`.
        share: hands a large value over to all that need it, as :func:`raykb.runtime.train.share`.
        warm: has workers import what they will need, as :func:`raykb.runtime.train.warm`.
    """

    train: Callable[..., list[Result | None]] = train
    search: Callable[..., list[Candidate]] = search
    call: Callable[..., Any] = call
    share: Callable[[Any], Any] = share
    warm: Callable[..., None] = warm


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
        holes: names of the trainings that failed while others went on.
        machine: does the work.
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
    holes: list[str] = field(default_factory=list)
    machine: Machine = field(default_factory=Machine)
    _children: dict[str, Run] = field(default_factory=dict)
    _compared: set[tuple[str, int]] = field(default_factory=set)

    @property
    def limits(self) -> Limits:
        """When work is taken for hung."""
        limits: Limits = build(Limits, self.config.get("watch", {}))
        return limits

    def say(self, text: str) -> None:
        """Tell the user what happens now."""
        print(redacted(text), file=sys.stderr, flush=True)

    def warm(self, phase: str, build: Callable[..., Any], each: WorkerResources) -> None:
        """Have the workers of ``phase`` import what ``build`` needs while the driver goes on."""
        self.machine.warm(build, self.parallel[phase], each)

    def share(self, **values: Any) -> dict[str, Any]:
        """Hand large values over to all workers that need them; return what stands for them."""
        return {name: self.machine.share(value) for name, value in values.items()}

    @contextlib.contextmanager
    def reading(self, section: str) -> Iterator[None]:
        """Turn errors of the input that a section of the config names into a refusal."""
        try:
            yield
        except (ValueError, OSError) as error:
            raise Refused(f"{section}: {error}") from error

    def child(
        self,
        name: str,
        *,
        phase: str,
        params: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Run:
        """Return the child run ``name``; its parameters are a config and ``params``.

        The config is the run's own, as it began, where none is given.
        """
        if name not in self._children:
            self._children[name] = self.tracker.run(
                name,
                name=name,
                parent=self.parent,
                params=flatten(self.recorded if config is None else config) | dict(params or {}),
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

    def write_all(self, files: Mapping[str, bytes | str]) -> None:
        """Write files by name; see :meth:`write`."""
        for name, data in files.items():
            self.write(name, data)

    def keep(self, name: str, text: str) -> str:
        """Return a file as the run began with it; it is ``text`` where the run begins now."""
        if not self.storage.exists(name):
            self.write(name, text)
            return text
        return self.storage.read(name).decode()

    def renewed(
        self, name: str, make: Callable[..., RecordedT], *arguments: Any, each: WorkerResources
    ) -> RecordedT:
        """Return what a worker makes, which can go on from what it recorded in an earlier run.

        Args:
            name: of the file that keeps the record.
            make: ``make(*arguments, record, threads)`` makes it; the record is None at first.
            arguments: for ``make``.
            each: what making it takes.
        """
        record = self.storage.read(name).decode() if self.storage.exists(name) else None
        found: RecordedT = self.machine.call(make, *arguments, record, each.cpus, resources=each)
        self.storage.write(name, found.record().encode())
        return found

    def unchanged(self, name: str, record: Mapping[str, Any], key: str) -> None:
        """Refuse to go on with other input than that which the run began with.

        Args:
            name: of the file that keeps the record.
            record: what must be the same, as JSON has it.
            key: of the config, which names the input.

        Raises:
            Refused: it is another; both are told.
        """
        before = parsed(self.keep(name, json.dumps(record)))
        other = [each for each in record if before.get(each) != record[each]]
        if other:
            now, then = ({each: told.get(each) for each in other} for told in (record, before))
            raise Refused(
                f"{key}: {json.dumps(now)} where the run began with {json.dumps(then)}; what a "
                "step sees would be otherwise. Put the files back as they were, or start a new run"
            )

    def listed(self, name: str, lines: Sequence[str], what: str) -> None:
        """Write lines to a file and say how many of ``what`` there are, if there is one."""
        if lines:
            self.write(name, "\n".join(lines) + "\n")
            self.say(f"{len(lines)} {what}; {name} names them, as {lines[0]}")

    def train(
        self, phase: str, jobs: Sequence[TrainJob], *, on_failure: OnFailure = "stop"
    ) -> list[Result | None]:
        """Run ``jobs`` with progress, each with a child run; see :func:`raykb.runtime.train.train`.

        Args:
            phase: its name in the plan.
            jobs: the trainings.
            on_failure: ``stop`` at the first training that fails; with ``hole`` its result is None.
        """
        self.tracker.ready(5.0)  # database and parent run are there before anything fans out
        share = {job.name: 0.0 for job in jobs}
        runs = {
            job.name: self.child(job.name, phase=phase, params=job.params, config=job.config)
            for job in jobs
        }
        found: dict[str, float] = {}  # the share that an earlier run of the directory did
        alone = len(jobs) == 1
        with Progress(phase, len(jobs), "trainings") as progress:

            def show(note: str = "") -> None:
                finished = sum(done == 1.0 for done in share.values())
                done, before = sum(share.values()), sum(found.values())
                progress.update(done, note, finished=finished, before=before)

            def on_letter(letter: Letter) -> None:
                runs[letter.name].log(letter.step, letter.figures)
                for line in letter.note.splitlines():
                    self.say(f"{letter.name}: {line}")
                done = letter.step / max(letter.steps, 1)  # what is evaluated alone has no steps
                share[letter.name] = max(share[letter.name], done * 0.999)
                found.setdefault(letter.name, share[letter.name])  # the first tells where it starts
                loss = letter.figures.get("train/loss")
                show(f"loss {loss:.3g}" if alone and loss is not None else "")

            def on_result(result: Result) -> None:
                runs[result.name].log(result.steps, result.metrics | result.cost)
                runs[result.name].finish()
                share[result.name] = 1.0
                found.setdefault(result.name, 1.0)
                show()

            def leave_hole(job: TrainJob, error: BaseException) -> None:
                self.holes.append(job.name)
                told = "".join(traceback.format_exception(error))
                runs[job.name].text(told, "error.txt")
                runs[job.name].finish("FAILED")
                self.say(f"{job.name}: failed, the others go on: {type(error).__name__}: {error}")
                share[job.name] = 1.0
                show()

            return self.machine.train(
                jobs,
                storage=self.storage,
                parallel=functools.partial(self.parallel.__getitem__, phase),
                on_letter=on_letter,
                on_result=on_result,
                on_failure=leave_hole if on_failure == "hole" else None,
                limits=self.limits,
            )

    def train_all(self, phase: str, jobs: Sequence[TrainJob]) -> list[Result]:
        """Run ``jobs``, all of which must end well; see :meth:`train`."""
        return [result for result in self.train(phase, jobs) if result is not None]

    def compare(
        self, phase: str, comparison: Comparison, jobs: Sequence[tuple[Entry, TrainJob]]
    ) -> list[tuple[Entry, Result]]:
        """Run the trainings of a comparison; return those that ended well, in order.

        Args:
            phase: its name in the plan.
            comparison: what is compared; it says what becomes of failures.
            jobs: the training of each entry; one whose configuration is more than that has its own.
        """
        recorded = comparison.entries(self.recorded)  # MLflow has them once and for all
        self._compared |= {(entry.label, entry.number) for entry, _ in jobs}
        told = [
            dataclasses.replace(
                job,
                config=job.config or recorded[entry.label],
                params={
                    LABEL: entry.label,
                    "seed_number": entry.number,
                    "training_number": entry.place,
                }
                | job.params,
            )
            for entry, job in jobs
        ]
        results = self.train(phase, told, on_failure=comparison.on_failure)
        pairs = zip(jobs, results, strict=True)
        return [(entry, result) for (entry, _), result in pairs if result is not None]

    def tell_data(self, **sets: ImageSet) -> None:
        """Say how many images there are of each kind, and which had to be left out."""
        skipped = [problem for images in sets.values() for problem in images.skipped]
        counts = {name: len(images) for name, images in sets.items()}
        told = ", ".join(f"{count} {name} images" for name, count in counts.items())
        self.say(f"{told}, {len(skipped)} skipped")
        figures = counts | {"skipped": len(skipped)}
        self.parent.log(0, {f"data/{name}": count for name, count in figures.items()})
        self.listed("skipped.txt", skipped, "images were left out")

    def keep_task(self, test: ImageSet) -> None:
        """Keep classes and shape of the images, for whoever labels others by what is trained."""
        task = {"schema": 1, "classes": test.classes, "shape": test.images.shape[1:]}
        self.write(TASK, json.dumps(task))

    def told(self, phase: str, results: Sequence[tuple[Entry, Result]]) -> list[Any]:
        """Return what trainings told, as :class:`raykb.report.told.Told`."""
        return [
            report.Told(
                entry.label,
                entry.number,
                result.metrics | {"steps": result.steps, "seconds": result.seconds},
                result.details(),
                self.child(result.name, phase=phase).history(),
                result.steps,
            )
            for entry, result in results
        ]

    def tell(
        self,
        comparison: Comparison,
        rows: Sequence[Mapping[str, Any]],
        metrics: Sequence[str],
        *,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write and print what a comparison found: results, table and picture.

        Args:
            comparison: what was compared.
            rows: of each training ``label``, ``seed`` and its metrics by name.
            metrics: those that are compared; the first is in the picture.
            about: what else stands in ``results.json``.
        """
        settings = {
            "over": comparison.over,
            "subject": comparison.subject(self.config),
            "metrics": list(metrics),
            "labels": list(comparison.entries(self.config)),
            "seeds": comparison.seeds,
        }
        table = report.ComparisonTable(rows, **settings)
        summary = table.summary()
        of_none = [r for r in summary["results"] if (r["label"], r["seed"]) not in self._compared]
        again = {"settings": settings, "rows": of_none}  # means of others, which no training has
        self.parent.tags({COMPARED: json.dumps(again)})
        self.write("results.json", json.dumps(summary | dict(about or {}), indent=1))
        self.show(table.text(), table.means() | table.headline(), metrics)
        if table.tables:
            self.write("comparison.png", report.png(table.figure()))

    def show(self, text: str, figures: Mapping[str, float], metrics: Sequence[str]) -> None:
        """Write and print the table of a run's results, and have MLflow's UI show it.

        Args:
            text: Markdown.
            figures: of the whole run.
            metrics: of the trainings, which the UI's table of them has as columns.
        """
        self.write("results.md", text + "\n")
        self.parent.note(text)
        self.parent.log(0, figures)
        self.parent.view(LABEL, metrics)
        print(f"\n{text}")

    def tell_standings(
        self,
        comparison: Comparison,
        rows: Sequence[Mapping[str, Any]],
        tasks: Mapping[str, Sequence[str]],
    ) -> None:
        """Write and print where the labels of a comparison stand over several tasks.

        Args:
            comparison: what was compared.
            rows: as :meth:`tell` takes them, with their ``seconds``.
            tasks: by name, the metrics that are a task's.
        """
        standings = report.Standings(
            rows,
            over=comparison.over,
            tasks=tasks,
            labels=list(comparison.entries(self.config)),
            seeds=comparison.seeds,
        )
        self.write("standings.json", json.dumps(standings.summary(), indent=1))
        self.write("standings.md", standings.text() + "\n")
        self.write("heat_map.png", report.png(standings.heat_map()))
        if standings.standing.overall["z"].notna().any():
            self.write("cost.png", report.png(standings.cost()))
        print(f"\n{standings.text()}")

    def search(
        self,
        phase: str,
        *,
        studies: Sequence[Study],
        width: int,
        every_candidate_a_child: bool = False,
        **arguments: Any,
    ) -> list[Candidate]:
        """Search with progress; see :func:`raykb.runtime.tune.search`.

        The tracker has a run for each group of studies, ``search/<group>``, with a candidate a
        step: its figures, and the best reward so far.

        Args:
            phase: its name in the plan.
            studies: the searches.
            width: candidates of each.
            every_candidate_a_child: whether each candidate has a run of its own, too.
            arguments: what else the search takes.
        """
        turns: dict[str, int] = {}  # of a study among those of its group
        groups: dict[str, int] = {}
        for study in studies:
            turns[study.name] = groups.setdefault(study.group, 0)
            groups[study.group] += 1
        best: dict[str, float] = {}
        told = 0
        with Progress(phase, len(studies) * width, "candidates") as progress:

            def on_told(candidate: Candidate) -> None:
                nonlocal told
                told += 1
                study, figures = candidate.study, candidate.figures
                if candidate.status == "finished":
                    top = max(best.get(study.group, -math.inf), figures["reward"])
                    best[study.group] = top
                    step = candidate.number + turns[study.name] * width
                    own = {f"search/{name}": value for name, value in figures.items()}
                    self.child(f"search/{study.group}", phase=phase).log(
                        step, own | {"search/best": top}
                    )
                if every_candidate_a_child:
                    child = self.child(f"{study.name}/{candidate.number:04d}", phase=phase)
                    child.params(candidate.params)
                    child.log(0, figures)
                    child.finish("FINISHED" if candidate.status == "finished" else "FAILED")
                progress.update(told)

            return self.machine.search(
                studies=studies,
                width=width,
                storage=self.storage,
                parallel=functools.partial(self.parallel.__getitem__, phase),
                on_told=on_told,
                limits=self.limits,
                **arguments,
            )

    def tell_kept(self, phase: str, kept: Mapping[str, Sequence[Candidate]], what: str) -> None:
        """Give what was kept of each study, the best first, runs ``<what>/<study>/rank-00``, …."""
        for study, found in kept.items():
            for rank, candidate in enumerate(found):
                child = self.child(f"{what}/{study}/rank-{rank:02d}", phase=phase)
                child.params(candidate.params)
                child.log(candidate.number, {"search/reward": candidate.reward})
                child.finish()

    def searched(self) -> dict[str, float]:
        """Say how long the search took; return that, as :func:`searched` does."""
        speed = searched(self.storage)
        self.parent.log(0, {f"search/{name}": value for name, value in speed.items()})
        self.say(f"{speed['candidates']:.0f} candidates in {speed['seconds']:.0f} s of search")
        return speed
