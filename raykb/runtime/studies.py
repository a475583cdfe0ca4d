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
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

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


class LedgerError(Exception):
    """The ledger does not fit this search."""


def sampler(name: str, seed: int, *, startup: int = 20) -> optuna.samplers.BaseSampler:
    """Return the Optuna sampler ``tpe`` (after ``startup`` random candidates) or ``random``."""
    if name == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, constant_liar=True
            )
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise ValueError(f"sampler: {name!r}, must be 'tpe' or 'random'")


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return ``space`` as Optuna's distributions."""
    return {
        name: FloatDistribution(*values)
        if all(isinstance(value, float) for value in values) and len(values) == 2
        else CategoricalDistribution(values)
        for name, values in space.items()
    }


class OpenStudy:
    """A study while it is searched: Optuna's state, and every candidate so far."""

    def __init__(self, study: Study, *, space: Space, width: int, sampler_name: str) -> None:
        self.study = study
        self.width = width
        self.candidates: list[Candidate] = []
        self._again: list[Candidate] = []  # asked before a crash, never told
        self._space = distributions(space)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna.create_study(
            direction="maximize", sampler=sampler(sampler_name, study.seed)
        )
        self._trials: list[optuna.Trial] = []

    @property
    def in_flight(self) -> int:
        """How many candidates are being scored."""
        return sum(c.status == "asked" for c in self.candidates) - len(self._again)

    @property
    def to_ask(self) -> int:
        """How many candidates can still be handed out."""
        return self.width - len(self.candidates) + len(self._again)

    def ask(self) -> tuple[Candidate, bool]:
        """Return the next candidate, and whether it is new (else it was in flight in a crash)."""
        if self._again:
            return self._again.pop(0), False
        return self._ask(), True

    def _ask(self) -> Candidate:
        trial = self._optuna.ask(self._space)
        self._trials.append(trial)
        self.candidates.append(Candidate(self.study, trial.number, dict(trial.params)))
        return self.candidates[-1]

    def tell(self, candidate: Candidate) -> None:
        """Tell Optuna, once, what came of ``candidate``."""
        trial = self._trials[candidate.number]
        if candidate.status == "finished":
            self._optuna.tell(trial, candidate.figures["reward"])
        elif candidate.status == "stopped":
            for part, reward in enumerate(candidate.rungs):
                trial.report(reward, part)
            self._optuna.tell(trial, state=TrialState.PRUNED)
        else:
            self._optuna.tell(trial, state=TrialState.FAIL)

    def replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Bring a fresh study to where the ledger's records of it end.

        Raises:
            LedgerError: a replayed question gives another suggestion than the ledger's.
        """
        for record in records:
            if record["event"] == "asked":
                candidate = self._ask()
                if candidate.params != record["params"]:
                    raise LedgerError(
                        f"{self.study.name}: candidate {candidate.number} is suggested as "
                        f"{candidate.params}, the ledger has {record['params']}. The ledger was "
                        "written with another seed, search space or version of Optuna (here "
                        f"{optuna.__version__}): resume with those, or start in a new directory."
                    )
            else:
                candidate = self.candidates[record["number"]]
                candidate.status, candidate.error = record["status"], record["error"]
                candidate.figures, candidate.rungs = record["figures"], record["rungs"]
                self.tell(candidate)
        self._again = [candidate for candidate in self.candidates if candidate.status == "asked"]


def searched(storage: Storage) -> tuple[float, int]:
    """Return the wall seconds of the search in ``storage``, pauses taken out, and its candidates.

    A candidate counts once it was told, also one that was stopped early or failed.
    """
    seconds, told, before = 0.0, 0, math.nan
    for record in storage.records(LEDGER):
        seconds += 0.0 if record["event"] == "opened" else record["time"] - before
        told += record["event"] == "told"
        before = record["time"]
    return seconds, told
