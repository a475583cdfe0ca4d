"""What a run compares: one section of the config that differs, times seeds.

Each entry is a whole config that differs from the run's in that section alone, so nobody who
builds a training knows of comparisons. A seed's number means the same data, initial weights and
order for every entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.names import check_name
from raykb.engine.seeding import stream_seed


@dataclass(frozen=True)
class Entry:
    """One training of a comparison.

    Attributes:
        label: what it is called in tables and folders.
        number: of the seed, from 0.
        seed: of all that is random in it.
        place: among all trainings of the comparison.
        config: the whole config of it.
    """

    label: str
    number: int
    seed: int
    place: int
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Its folder below the comparison's."""
        return f"{self.label}/seed-{self.number}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is trained beside the run's own section, and how often; a section of the config.

    Args:
        over: the section that differs: method, augmentation, model, …
        seeds: trainings of each entry, numbered from 0; a number means the same data, initial
            weights and order for all of them.
        rivals: further entries by label, each a whole section of that kind:
            ``{fixmatch: {name: fixmatch}, loose: {name: fixmatch, threshold: 0.8}}``.
        label: of the run's own section; null for its ``name``.
        on_failure: ``stop`` the run when a training fails, or leave a ``hole`` in the table and go
            on with the others.
        added: what the program adds by label, and in which sections each differs from the run's.
    """

    over: str = "method"
    seeds: int = 1
    rivals: dict[str, dict[str, Any]] = field(default_factory=dict)
    label: str | None = None
    on_failure: Literal["stop", "hole"] = "stop"
    added: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = misfits(self, seeds=at_least(1))
        for label in (*self.rivals, *([] if self.label is None else [self.label])):
            try:
                check_name(label, "rivals" if label in self.rivals else "label")
            except ValueError as error:
                problems.append(str(error))
        refuse(problems)

    def subject(self, config: Mapping[str, Any]) -> str:
        """Return the label of the run's own section."""
        return self.label or str(config[self.over].get("name", self.over))

    def entries(self, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return whole configs by label: those that were added, the rivals, then the run's own.

        Raises:
            ValueError: two are called the same.
        """
        subject = self.subject(config)
        if subject in self.rivals:
            raise ValueError(
                f"rivals: {subject!r} is what the section {self.over!r} is called; call the rival "
                "otherwise, or leave it out"
            )
        for label in self.added:
            if label == subject or label in self.rivals:
                raise ValueError(f"label: {label!r} is a word of the run's own; take another one")
        added = {label: {**config, **sections} for label, sections in self.added.items()}
        rivals = {label: {**config, self.over: row} for label, row in self.rivals.items()}
        return added | rivals | {subject: dict(config)}

    def seeds_of(self, config: Mapping[str, Any], stream: str = "training") -> list[int]:
        """Return the seeds by number: those of the run's stream of that name."""
        return [stream_seed(config["seed"], stream, number) for number in range(self.seeds)]

    def trainings(self, config: Mapping[str, Any], stream: str = "training") -> list[Entry]:
        """Return all trainings, seed by seed."""
        each = [
            (number, seed, label, whole)
            for number, seed in enumerate(self.seeds_of(config, stream))
            for label, whole in self.entries(config).items()
        ]
        return [
            Entry(label, number, seed, place, whole)
            for place, (number, seed, label, whole) in enumerate(each)
        ]
