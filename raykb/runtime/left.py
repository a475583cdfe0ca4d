"""What a run has left, read once: its trainings, and its runs in the tracking store."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raykb.engine import checkpoint
from raykb.engine.foreign import parsed
from raykb.engine.names import check_part
from raykb.runtime.job import files_of
from raykb.runtime.run_files import CONFIG, FINAL, RECORD, name_below, tracking_of, trainings
from raykb.runtime.runs import TrackedRun, history, runs_of
from raykb.runtime.secrets import whole_uri
from raykb.runtime.storage import Storage
from raykb.runtime.tracking import resolve_uri
from raykb.runtime.train import Result, finished
from raykb.runtime.work import DETAILS, RESULT

Told = Iterator[tuple[str, str, str]]
"""What does not hold: where, what, and what to do."""

RESULTS = "results.json"
_WITHIN = 6  # folders of a run; a search of architectures has its trainings four below
_HALTED = "halted-"


@dataclass(frozen=True)
class LeftTraining:
    """The folder of a training.

    Attributes:
        name: below the run directory, which is that of its run in the tracking store.
        folder: where its files are.
        files: their names.
        result: what it found; None while it has not ended, or where that cannot be read.
        damage: why it cannot be read.
    """

    name: str
    folder: Storage
    files: list[str]
    result: Result | None
    damage: str = ""

    @property
    def came_to_an_end(self) -> bool:
        """Whether it left a result, of its end or of a step at which it was to halt."""
        return RESULT in self.files or any(name.startswith(_HALTED) for name in self.files)

    @property
    def uncommitted(self) -> list[str]:
        """Checkpoints that were begun and never became valid."""
        return checkpoint.uncommitted(self.folder)


@dataclass(frozen=True)
class Tracked:
    """What the tracking store has of a run directory.

    Attributes:
        uri: of the store.
        parents: its own runs, of which there should be one.
        children: all others, by name.
    """

    uri: str
    parents: list[TrackedRun]
    children: dict[str, list[TrackedRun]]
    _read: dict[tuple[str, str], list[tuple[int, float]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def of(cls, run: Storage, uri: str) -> "Tracked":
        """Read the store; see :func:`raykb.runtime.runs.runs_of` for errors."""
        parents, children = list[TrackedRun](), defaultdict[str, list[TrackedRun]](list)
        for each in runs_of(uri, record_of(run)["key"]):
            if each.id == each.invocation_id:
                parents.append(each)
            else:
                children[each.name].append(each)
        return cls(uri, parents, dict(children))

    @property
    def runs(self) -> list[TrackedRun]:
        """All of them."""
        return self.parents + [run for same in self.children.values() for run in same]

    def only(self, name: str) -> TrackedRun | None:
        """Return the child of this name; None unless there is exactly one."""
        same = self.children.get(name, [])
        return same[0] if len(same) == 1 else None

    def history(self, run: TrackedRun, name: str) -> list[tuple[int, float]]:
        """Return steps and values of a run's metric, by step; nothing if it has no such metric."""
        if name not in run.metrics:
            return []
        if (run.id, name) not in self._read:
            self._read[run.id, name] = history(self.uri, run, name)
        return self._read[run.id, name]


@dataclass(frozen=True)
class Left:
    """All that a run has left.

    Attributes:
        storage: the run directory.
        trainings: those that have begun to leave something, by name.
        tracked: what the tracking store has; None if nobody asked.
    """

    storage: Storage
    trainings: list[LeftTraining]
    tracked: Tracked | None = None

    @classmethod
    def of(cls, storage: Storage, uri: str | None = None) -> "Left":
        """Read a run directory, and the store at ``uri`` if one is given.

        Raises:
            ValueError: there is no record of a run, or no such store.
            ConnectionError: the store does not answer.
        """
        record_of(storage)
        found = trainings(storage, _is_training, within=_WITHIN)
        own = sorted((_training(storage, folder) for folder in found), key=lambda each: each.name)
        return cls(storage, own, None if uri is None else Tracked.of(storage, uri))

    @property
    def results(self) -> list[tuple[LeftTraining, Result]]:
        """The trainings that have ended, with what they found."""
        return [(each, each.result) for each in self.trainings if each.result is not None]

    @property
    def half_written(self) -> list[str]:
        """Files and folders that a writer began: it is at work, or died."""
        found = set[str]()
        tops = {each.name: each.folder for each in self.trainings} | {"": self.storage}
        for name, top in tops.items():  # trainings too, for links may lead to them
            found |= {f"{name}/{file}".strip("/") for file in top.temporaries()}
        found |= {f"{each.name}/{name}" for each in self.trainings for name in each.uncommitted}
        return sorted(found)


def record_of(run: Storage) -> dict[str, Any]:
    """Return the record of a run; raises ValueError where it is damaged, or there is none."""
    try:
        record: dict[str, Any] = parsed(run.read(RECORD))
        check_part(record["key"], "key")
        dict(record["config"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run.place}/{RECORD}: is not the record of a run ({error!r}); name a run directory, "
            "or bring the file back from a copy"
        ) from error
    return record


def spool_of(run: Storage) -> Path:
    """Return the folder of this host from which a run is sent to the tracking store."""
    return files_of(run, record_of(run)["key"]) / "tracking"


def uri_of(run: Storage, given: str | None = None) -> str:
    """Return where a run is tracked: as given, as its record says, or else the environment."""
    return resolve_uri(given or whole_uri(tracking_of(record_of(run))))


def _is_training(folder: Storage) -> bool:
    names = folder.files()
    own = not {RESULT, FINAL, DETAILS, CONFIG}.isdisjoint(names)
    halted = any(name.startswith(_HALTED) for name in names)
    return own or halted or bool(checkpoint.folders(folder))


def _training(run: Storage, folder: Storage) -> LeftTraining:
    name, files = name_below(run, folder), folder.files()
    try:
        result = finished(run, name)
        if result is not None:  # what is of another kind cannot be added
            sum([*result.metrics.values(), result.steps, result.seconds], 0.0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return LeftTraining(name, folder, files, None, repr(error))
    return LeftTraining(name, folder, files, result)
