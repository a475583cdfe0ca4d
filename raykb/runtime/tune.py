"""Ray Tune drives many studies at once, over long-lived evaluators that serve any of them."""

import contextlib
import copy
import functools
import logging
import math
import os
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from raykb.engine.memory import keep_freed_memory
from raykb.runtime.faults import is_loss
from raykb.runtime.open_study import OpenStudy
from raykb.runtime.resources import WorkerResources
from raykb.runtime.searcher import StudySearcher
from raykb.runtime.storage import Storage
from raykb.runtime.studies import (
    LEDGER,
    Candidate,
    Figures,
    Halving,
    Space,
    Study,
)
from raykb.runtime.watch import Limits, hangs, watched

_logger = logging.getLogger(__name__)
SEARCH = "search"
"""Whose hangs are those of evaluators."""


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
        if "error" not in result:
            self._of(trial).on_trial_complete(controller, trial, result)

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(controller, trial)


class _Evaluator(tune.Trainable):
    """A long-lived process with one :class:`Score`; Tune resets it from candidate to candidate.

    What a score raises is the candidate's failure and no reason to score it again. The next one is
    scored as a new process would. An error of the device is raised: it outlives all but processes.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters gives the keywords
        self,
        config: dict[str, Any],
        *,
        score: Score,
        shared: Mapping[str, Any],
        parts: int,
        stepwise: bool,
        threads: int,
        limits: Limits,
        storage: Storage,
    ) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._plain, self._shared = score, shared
        self._score: Score | None = None
        self._parts, self._stepwise, self._part = parts, stepwise, 0
        with contextlib.ExitStack() as stack:
            name = f"{SEARCH}/evaluator-{os.getpid()}"
            self._watch = stack.enter_context(watched(limits, storage, name))
            self._ends = stack.pop_all()

    def cleanup(self) -> None:
        self._ends.close()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._part = 0
        return True

    def step(self) -> dict[str, Any]:
        self._part = self._part + 1 if self._stepwise else self._parts
        reached = {"part": self._part, "parts": self._parts}
        try:
            with self._watch.score(_name(self.config)):
                figures = _checked(self._ready().score(self.config, self._part))
        except Exception as error:
            if is_loss(error) or isinstance(error, torch.AcceleratorError):
                raise
            _logger.exception("%s", _name(self.config))
            self._score = None
            told = f"{type(error).__name__}: {error}"
            return reached | {"reward": math.nan, "error": told, "done": True}
        found = {"reward": figures["reward"], "figures": figures}
        return reached | found | {"done": self._part >= self._parts}

    def _ready(self) -> Score:
        """Return the score, set up."""
        if self._score is None:
            score = copy.deepcopy(self._plain)
            score.setup(**{name: ray.get(reference) for name, reference in self._shared.items()})
            self._score = score
        return self._score


def _checked(figures: Any) -> Figures:
    """Return what a score found; raises ValueError if that is nothing to choose by."""
    if not isinstance(figures, Mapping) or "reward" not in figures:
        raise ValueError(f"score: {figures!r}, must be figures by name, a 'reward' among them")
    return dict(figures)


def _name(config: Mapping[str, Any]) -> str:
    return f"{config['study']}, candidate {config['number']}"


class _Errors(tune.Callback):
    """Says what failed, and gives a candidate that is tried again the error of its last try."""

    def __init__(self, searcher: StudySearcher, storage: Storage) -> None:
        self._searcher, self._storage = searcher, storage

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._searcher.parallel()  # raises where no evaluator will ever be placed

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if error := trial.last_result.get("error"):
            _logger.warning("%s failed: %s", _name(trial.config), error)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _logger.warning("%s is scored again: %s", _name(trial.config), self._reason(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _logger.warning("%s failed: %s", _name(trial.config), self._reason(trial))

    def _reason(self, trial: Any) -> str:
        """Return why an evaluator died, and let the candidate have it."""
        told = f"hung at {_name(trial.config)} ("
        hung = [each for each in hangs(self._storage, SEARCH) if told in each]
        lines = Path(trial.error_file).read_text().split("\n") if trial.error_file else []
        reason = next((line for line in reversed(lines) if line.strip()), "its evaluator died")
        reason = hung[-1].splitlines()[0] if hung else reason
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
    parallel: int | Callable[[], int],
    per_group: int = 1,
    sampler_name: str = "tpe",
    parts: int = 1,
    halving: Halving | None = None,
    retries: int = 2,
    max_failed: int | None = None,
    limits: Limits | None = None,
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
        parallel: evaluators side by side, as the plan allows; it is asked anew all the while.
        per_group: candidates of one group in flight.
        sampler_name: ``tpe`` or ``random``.
        parts: parts of the data that a whole score covers.
        halving: stops bad candidates between two parts; None scores all parts at once.
        retries: how often a candidate is scored again after its evaluator died.
        max_failed: candidates that may fail, of those that this process scores; None for all, but
            for the first ones.
        limits: when an evaluator is taken for hung; it is ended then, as if it had died.
        on_told: is called in the driver for each candidate that was told; those of the ledger
            come first.

    Raises:
        LedgerError: the ledger in ``storage`` is of another search.
        SearchError: the first candidates failed one and all, or more than may.
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
        searcher = StudySearcher(
            opened,
            per_group=per_group,
            parallel=parallel if callable(parallel) else lambda: parallel,
            max_failed=max_failed,
            record=record,
            on_told=on_told,
        )
        evaluator = tune.with_parameters(
            _Evaluator,
            score=score,
            shared={name: ray.put(value) for name, value in shared.items()},
            parts=parts,
            stepwise=halving is not None,
            threads=resources.cpus,
            limits=limits or Limits(),
            storage=storage,
        )
        errors = _Errors(searcher, storage)
        _tune(evaluator, searcher, scheduler, left, resources, retries, errors)
        searcher.refuse()
    return [candidate for study in opened for candidate in study.candidates]


def _tune(
    evaluator: Any,
    searcher: StudySearcher,
    scheduler: TrialScheduler,
    samples: int,
    resources: WorkerResources,
    retries: int,
    errors: tune.Callback,
) -> None:
    """Run one Tuner to the end; its own snapshot is never read, so it is kept small and rare."""
    os.environ.update(
        RAY_AIR_NEW_OUTPUT="0",  # the old reporter is the one that can be silent
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_DISABLE_SIGINT_HANDLER="1",
        TUNE_GLOBAL_CHECKPOINT_S="3600",
        TUNE_WARN_THRESHOLD_S="60",
        TUNE_MAX_PENDING_TRIALS_PG=str(searcher.parallel()),
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
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[errors],
                verbose=0,
            ),
        ).fit()
