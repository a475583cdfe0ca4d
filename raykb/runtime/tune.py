"""Ray Tune drives many studies at once: a composite searcher over long-lived evaluators.

One :class:`Study` is one Optuna study with a seed of its own. The searcher asks the studies in
turn for candidates, hands them to Tune, and tells each study what came of them. All that it asks
and tells goes to an append-only ledger first:

    {"event": "opened", …}
    {"event": "asked", "study": "split-0/round-0", "number": 3, "params": {…}}
    {"event": "told",  "study": "split-0/round-0", "number": 3, "status": "finished", …}

To resume is to replay the ledger into fresh studies with the same seeds: each replayed question
must give the suggestion that the ledger holds, candidates that were asked but not told are
scored first, and nothing that was told is scored again.
"""

import functools
import logging
import math
import os
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import optuna
import ray
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from raykb.runtime.resources import WorkerResources
from raykb.runtime.storage import Storage

LEDGER = "ledger.jsonl"
_HOPELESS = 4

Space = Mapping[str, tuple[Any, ...]]
"""A search space as plain data: two floats are a range, strings are choices."""

Figures = dict[str, float]

_logger = logging.getLogger(__name__)


class Score(Protocol):
    """Scores candidates; one is made per evaluator and serves every candidate it is given."""

    def setup(self, **shared: Any) -> None:
        """Take what all candidates need, once; arrays are read-only views of shared memory."""
        ...

    def score(self, candidate: dict[str, Any], budget: int) -> Figures:
        """Return the figures of ``candidate`` over the first ``budget`` parts of the data.

        ``candidate`` holds ``params`` and the study's own ``fields``.
        """
        ...


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
        if self.grace_parts < 1:
            raise ValueError(f"grace_parts: {self.grace_parts}, must be at least 1")
        if not self.reduction_factor > 1:
            raise ValueError(f"reduction_factor: {self.reduction_factor}, must be above 1")


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


class SearchError(Exception):
    """No candidate could be scored."""


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


class StudySearcher(Searcher):
    """One searcher over many studies, as Tune knows searchers.

    Each group has at most ``per_group`` candidates in flight, and its studies run one after the
    other; the group that has been asked least is asked next. With one in flight per group, what
    a study is asked and told, and so what it suggests, does not depend on timing.
    """

    def __init__(
        self,
        studies: Sequence[OpenStudy],
        *,
        per_group: int,
        record: Callable[[dict[str, Any]], None],
        on_told: Callable[[Candidate], None],
    ) -> None:
        super().__init__(metric="reward", mode="max")
        self._groups: dict[str, list[OpenStudy]] = {}
        for study in studies:
            self._groups.setdefault(study.study.group, []).append(study)
        self._studies = {study.study.name: study for study in studies}
        self._per_group = per_group
        self._record = record
        self._on_told = on_told
        self.by_trial: dict[str, Candidate] = {}

    @property
    def failures(self) -> list[str]:
        """The errors of the candidates, as long as every one of them failed."""
        told = [c for s in self._studies.values() for c in s.candidates if c.status != "asked"]
        return [c.error for c in told] if all(c.status == "failed" for c in told) else []

    def suggest(self, trial_id: str) -> Any:
        """Return the next candidate, None while every group is full, or FINISHED."""
        if len(self.failures) >= _HOPELESS:
            return Searcher.FINISHED
        ready: list[tuple[int, OpenStudy]] = []
        for group in self._groups.values():
            study = next((s for s in group if s.to_ask or s.in_flight), None)
            if study and study.to_ask and study.in_flight < self._per_group:
                ready.append((sum(s.width - s.to_ask for s in group), study))
        if not ready:
            left = any(study.to_ask for study in self._studies.values())
            return None if left else Searcher.FINISHED
        study = min(ready, key=lambda pair: pair[0])[1]
        candidate, new = study.ask()
        if new:
            self._record({"event": "asked"} | _key(candidate) | {"params": candidate.params})
        self.by_trial[trial_id] = candidate
        return {
            "study": candidate.study.name,
            "number": candidate.number,
            "params": candidate.params,
            "fields": candidate.study.fields,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the figures after one more part of the data."""
        self._keep(self.by_trial[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study what came of its candidate, the ledger first."""
        candidate = self.by_trial[trial_id]
        if error or result is None or "part" not in result:
            candidate.status = "failed"
            candidate.error = candidate.error or "the evaluator failed"
        else:
            self._keep(candidate, result)
        outcome = {
            "status": candidate.status,
            "error": candidate.error,
            "figures": candidate.figures,
            "rungs": candidate.rungs,
        }
        self._record({"event": "told"} | _key(candidate) | outcome)
        self._studies[candidate.study.name].tell(candidate)
        self._on_told(candidate)

    def _keep(self, candidate: Candidate, result: Mapping[str, Any]) -> None:
        """Write one of Tune's results into ``candidate``."""
        part, reward = int(result["part"]), float(result["reward"])
        candidate.rungs = [*candidate.rungs[: part - 1], reward]
        candidate.figures = {
            name.removeprefix("figures/"): float(value)
            for name, value in flatten_dict(dict(result)).items()
            if name.startswith("figures/")
        }
        candidate.status = "finished" if part == int(result["parts"]) else "stopped"
        if not math.isfinite(reward):
            candidate.status, candidate.error = "failed", f"reward: {reward} is not finite"

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher for a snapshot that is never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the truth."""


def _key(candidate: Candidate) -> dict[str, Any]:
    return {"study": candidate.study.name, "number": candidate.number}


class _HalvingByStudy(FIFOScheduler):
    """Asynchronous successive halving within each study: only its own candidates compete."""

    def __init__(self, halving: Halving, parts: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._make = functools.partial(
            ASHAScheduler,
            time_attr="part",
            metric="reward",
            mode="max",
            max_t=parts,
            grace_period=halving.grace_parts,
            reduction_factor=halving.reduction_factor,
        )
        self._by_study: dict[str, ASHAScheduler] = {}

    def _of(self, trial: Any) -> ASHAScheduler:
        study = trial.config["study"]
        if study not in self._by_study:
            self._by_study[study] = self._make()
        return self._by_study[study]

    def replay(self, candidates: Iterable[Candidate]) -> None:
        """Take in the rungs of candidates that were told before a crash."""
        for candidate in candidates:
            if candidate.status in ("finished", "stopped"):
                config = {"study": candidate.study.name}
                trial = types.SimpleNamespace(trial_id=str(candidate.number), config=config)
                self.on_trial_add(None, trial)
                for index, reward in enumerate(candidate.rungs):
                    self.on_trial_result(None, trial, {"part": index + 1, "reward": reward})

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = self._of(trial).on_trial_result(controller, trial, result)
        return action

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(controller, trial, result)

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(controller, trial)


class _Evaluator(tune.Trainable):
    """A long-lived process with one :class:`Score`; Tune resets it from candidate to candidate."""

    def setup(  # type: ignore[override]  # tune.with_parameters gives the keywords
        self,
        config: dict[str, Any],
        *,
        score: Score,
        shared: Mapping[str, Any],
        parts: int,
        stepwise: bool,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        self._score, self._parts, self._stepwise = score, parts, stepwise
        self._score.setup(**{name: ray.get(reference) for name, reference in shared.items()})
        self._part = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._part = 0
        return True

    def step(self) -> dict[str, Any]:
        self._part = self._part + 1 if self._stepwise else self._parts
        figures = self._score.score(self.config, self._part)
        return {
            "reward": figures["reward"],
            "figures": figures,
            "part": self._part,
            "parts": self._parts,
            "done": self._part >= self._parts,
        }


class _Errors(tune.Callback):
    """Says what failed, and gives a candidate that is tried again the error of its last try."""

    def __init__(self, searcher: StudySearcher) -> None:
        self._searcher = searcher

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _logger.warning("%s is scored again: %s", self._name(trial), self._reason(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _logger.warning("%s failed: %s", self._name(trial), self._reason(trial))

    @staticmethod
    def _name(trial: Any) -> str:
        return f"{trial.config['study']}, candidate {trial.config['number']}"

    def _reason(self, trial: Any) -> str:
        """Return the last line of the error, and let the candidate have it."""
        lines = Path(trial.error_file).read_text().split("\n") if trial.error_file else []
        reason = next((line for line in reversed(lines) if line.strip()), "its evaluator died")
        self._searcher.by_trial[trial.trial_id].error = reason
        return reason


def search(
    studies: Sequence[Study],
    *,
    space: Space,
    width: int,
    score: Score,
    shared: Mapping[str, Any],
    storage: Storage,
    resources: WorkerResources,
    parallel: int,
    per_group: int = 1,
    sampler_name: str = "tpe",
    parts: int = 1,
    halving: Halving | None = None,
    retries: int = 2,
    on_told: Callable[[Candidate], None] = lambda candidate: None,
) -> list[Candidate]:
    """Search all ``studies`` with one Tuner; return every candidate, in the studies' order.

    Args:
        studies: the searches.
        space: what each of them searches.
        width: candidates of each study.
        score: pickled to every evaluator and set up there once.
        shared: what ``score.setup`` gets, put into the object store once for all evaluators.
        storage: the run directory; ``ledger.jsonl`` in it is replayed if it is there.
        resources: what one evaluator takes.
        parallel: evaluators side by side.
        per_group: candidates of one group in flight.
        sampler_name: ``tpe`` or ``random``.
        parts: parts of the data that a whole score covers.
        halving: stops bad candidates between two parts; None scores all parts at once.
        retries: how often a candidate is scored again after its evaluator failed.
        on_told: is called in the driver for each candidate that was told; those of the ledger
            come first.

    Raises:
        LedgerError: the ledger in ``storage`` is of another search.
        SearchError: the first candidates failed one and all.
    """
    ledger = list(storage.records(LEDGER))
    opened = [
        OpenStudy(study, space=space, width=width, sampler_name=sampler_name) for study in studies
    ]
    for study in opened:
        study.replay(record for record in ledger if record.get("study") == study.study.name)
    told = [c for study in opened for c in study.candidates if c.status != "asked"]
    for candidate in told:
        on_told(candidate)
    left = sum(study.to_ask for study in opened)
    if left:
        scheduler = FIFOScheduler() if halving is None else _HalvingByStudy(halving, parts)
        if isinstance(scheduler, _HalvingByStudy):
            scheduler.replay(told)

        def record(event: dict[str, Any]) -> None:
            storage.append(LEDGER, event | {"time": time.time()})

        record({"event": "opened", "optuna": optuna.__version__})
        searcher = StudySearcher(opened, per_group=per_group, record=record, on_told=on_told)
        evaluator = tune.with_parameters(
            _Evaluator,
            score=score,
            shared={name: ray.put(value) for name, value in shared.items()},
            parts=parts,
            stepwise=halving is not None,
            threads=resources.cpus,
        )
        _tune(evaluator, searcher, scheduler, left, resources, parallel, retries)
        if len(searcher.failures) >= _HOPELESS:
            raise SearchError(
                f"no candidate could be scored; the first {len(searcher.failures)} failed with: "
                + "; ".join(dict.fromkeys(searcher.failures))
            )
    return [candidate for study in opened for candidate in study.candidates]


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


def _tune(
    evaluator: Any,
    searcher: StudySearcher,
    scheduler: TrialScheduler,
    samples: int,
    resources: WorkerResources,
    parallel: int,
    retries: int,
) -> None:
    """Run one Tuner to the end; its own snapshot is never read, so it is kept small and rare."""
    os.environ.update(
        RAY_AIR_NEW_OUTPUT="0",  # the old reporter is the one that can be silent
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_DISABLE_SIGINT_HANDLER="1",
        TUNE_GLOBAL_CHECKPOINT_S="3600",
        TUNE_WARN_THRESHOLD_S="60",
        TUNE_MAX_PENDING_TRIALS_PG=str(parallel),
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # _Errors says it in one line
    with tempfile.TemporaryDirectory(prefix="raykb-tune-") as folder:
        tune.Tuner(
            tune.with_resources(evaluator, {"cpu": resources.cpus, "gpu": resources.gpus}),
            tune_config=tune.TuneConfig(
                metric="reward",
                mode="max",
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=samples,
                max_concurrent_trials=parallel,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[_Errors(searcher)],
                verbose=0,
            ),
        ).fit()
