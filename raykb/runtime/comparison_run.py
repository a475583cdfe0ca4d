"""A run that is one comparison: its only phase are trainings that differ in one section."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from raykb.comparison import Comparison, Entry
from raykb.config import build
from raykb.runtime.resources import Phase, WorkerResources
from raykb.runtime.session import Session
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob

TRAINING = "trainings"
DataT = TypeVar("DataT")


@dataclass(frozen=True)
class ComparisonRun(Generic[DataT]):
    """What such a run is made of before anything starts.

    Attributes:
        data: that were opened.
        comparison: what is compared.
        phase: all of its trainings.
        sees: by label, what says which stream a training has beside it, where there are streams.
    """

    data: DataT
    comparison: Comparison
    phase: Phase
    sees: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        data: DataT,
        *,
        name: str = TRAINING,
        resources: str = "training",
        sees: Mapping[str, Any] | None = None,
        beside: Mapping[str, WorkerResources] | None = None,
    ) -> "ComparisonRun[DataT]":
        """Return the run of a config.

        Args:
            config: the sections ``comparison`` and ``resources``.
            data: as the attribute.
            name: of the phase.
            resources: name of the section in ``resources`` that says what a training takes.
            sees: as the attribute.
            beside: what runs beside each training.
        """
        comparison = build(Comparison, config["comparison"])
        each = build(WorkerResources, config["resources"][resources])
        phase = Phase(name, len(comparison.trainings(config)), each, beside)
        return cls(data, comparison, phase, sees or {})

    @property
    def phases(self) -> list[Phase]:
        """The one that there is."""
        return [self.phase]

    @property
    def each(self) -> WorkerResources:
        """What one worker of a training takes."""
        return self.phase.each

    def train(
        self, session: Session, job: Callable[[Entry], TrainJob]
    ) -> list[tuple[Entry, Result]]:
        """Run the training that ``job`` returns of each entry; return those that ended well."""
        jobs = [(entry, job(entry)) for entry in self.comparison.trainings(session.config)]
        return session.compare(self.phase.name, self.comparison, jobs)
