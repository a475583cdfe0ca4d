"""A study while it is searched, as Optuna has it."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from raykb.runtime.studies import Candidate, LedgerError, Space, Study


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
