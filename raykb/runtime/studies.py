"""Studies that can be resumed: Optuna's ask and tell, replayed from an append-only ledger.

One :class:`Study` is one Optuna study with a seed of its own. All that is asked and told goes to
the ledger first:

    {"event": "opened", …}
    {"event": "asked", "study": "split-0/round-0", "number": 3, "params": {…}}
    {"event": "told",  "study": "split-0/round-0", "number": 3, "status": "finished", …}

To resume is to replay the ledger into fresh studies with the same seeds: each replayed question
must give the suggestion that the ledger holds, candidates that were asked but not told are
scored first, and nothing that was told is scored again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raykb.engine.arguments import above, at_least, check_settings
from raykb.engine.seeding import stream_seed
from raykb.runtime.storage import Storage

LEDGER = "ledger.jsonl"

Space = Mapping[str, tuple[Any, ...]]
"""A search space as plain data: two floats are a range, strings are choices."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Study:
    """One search of its own.

    Attributes:
        name: unique; the ledger's key.
        group: studies of one group run one after the other (the rounds of a split).
        seed: of the sampler.
        fields: what the evaluators are told of it, ``{"split": 0, "round": 1}``.
    """

    name: str
    group: str
    seed: int
    fields: dict[str, Any]


def rounds_of_splits(splits: int, rounds: int, seed: int) -> list[Study]:
    """Return a study for each round of each split of the data, which is its group."""
    return [
        Study(
            f"split-{split}/round-{turn}",
            f"split-{split}",
            stream_seed(seed, "study", split, turn) % 2**32,
            {"split": split, "round": turn},
        )
        for split in range(splits)
        for turn in range(rounds)
    ]


@dataclass
class Candidate:
    """One suggestion of a study and what came of it.

    Attributes:
        study: whose it is.
        number: counted from 0 in its study.
        params: the suggestion.
        status: ``asked``, then ``finished``, ``stopped`` (early, by halving) or ``failed``.
        figures: what the evaluator returned last.
        rungs: the reward after each part, as far as it got.
        error: why it failed.
    """

    study: Study
    number: int
    params: dict[str, Any]
    status: str = "asked"
    figures: Figures = field(default_factory=dict)
    rungs: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def reward(self) -> float:
        """What is maximised; of one that was scored."""
        return self.figures["reward"]

    def row(self) -> dict[str, Any]:
        """Return all that is known of it, as a row of a table."""
        outcome = {"number": self.number, "status": self.status, "error": self.error}
        return self.study.fields | outcome | self.figures | self.params


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Asynchronous successive halving (Li et al., MLSys 2020) over the parts of the data.

    Args:
        grace_parts: parts that every candidate is scored on.
        reduction_factor: one in so many goes on at each rung.
    """

    grace_parts: int = 1
    reduction_factor: float = 2.0

    def __post_init__(self) -> None:
        check_settings(self, grace_parts=at_least(1), reduction_factor=above(1))


def scored(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Return the candidates that were scored to the end, by the name of their study."""
    studies: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.status == "finished":
            studies.setdefault(candidate.study.name, []).append(candidate)
    return studies


class LedgerError(Exception):
    """The ledger does not fit this search."""


class SearchError(Exception):
    """No candidate could be scored."""


def searched(storage: Storage) -> dict[str, float]:
    """Return how long the search in ``storage`` took, pauses taken out, and how fast it was.

    Returns:
        ``candidates`` that were told, also those that were stopped early or failed, wall
        ``seconds``, and ``evaluations_per_second``.
    """
    seconds, told, before = 0.0, 0, math.nan
    for record in storage.records(LEDGER):
        seconds += 0.0 if record["event"] == "opened" else record["time"] - before
        told += record["event"] == "told"
        before = record["time"]
    return {"candidates": told, "seconds": seconds, "evaluations_per_second": told / seconds}
