"""One searcher over many studies, as Ray Tune knows searchers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from raykb.runtime.open_study import OpenStudy
from raykb.runtime.studies import Candidate, SearchError

_HOPELESS = 4


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
        parallel: Callable[[], int],
        max_failed: int | None = None,
        record: Callable[[dict[str, Any]], None],
        on_told: Callable[[Candidate], None],
    ) -> None:
        super().__init__(metric="reward", mode="max")
        self._groups: dict[str, list[OpenStudy]] = {}
        for study in studies:
            self._groups.setdefault(study.study.group, []).append(study)
        self._all = list(studies)
        self._per_group, self.parallel = per_group, parallel
        self._max_failed = math.inf if max_failed is None else max_failed
        self._record = record
        self._on_told = on_told
        self.by_trial: dict[str, Candidate] = {}

    @property
    def failures(self) -> list[str]:
        """The errors of this process's candidates that failed, the first one first."""
        return [c.error for c in self.by_trial.values() if c.status == "failed"]

    @property
    def hopeless(self) -> bool:
        """Whether the first candidates failed one and all: then so would the others."""
        scored = any(c.status in ("finished", "stopped") for s in self._all for c in s.candidates)
        return not scored and len(self.failures) >= _HOPELESS

    @property
    def over(self) -> bool:
        """Whether the search ends before all is asked."""
        return self.hopeless or len(self.failures) > self._max_failed

    def refuse(self) -> None:
        """Raise SearchError, with the reasons in the order in which they came, if it ended so."""
        if not self.over:
            return
        failed = f"{len(self.failures)} candidates failed, {self._max_failed:g} may (max_failed)"
        if self.hopeless:
            failed = f"no candidate could be scored; the first {len(self.failures)} failed"
        raise SearchError(f"{failed}, with: {'; '.join(dict.fromkeys(self.failures))}")

    def suggest(self, trial_id: str) -> Any:
        """Return the next candidate, None while every group or the cluster is full, or FINISHED."""
        if self.over:
            return Searcher.FINISHED
        if sum(study.in_flight for study in self._all) >= self.parallel():
            return None if any(study.to_ask for study in self._all) else Searcher.FINISHED
        ready: list[tuple[int, OpenStudy]] = []
        for group in self._groups.values():
            study = next((s for s in group if s.to_ask or s.in_flight), None)
            if study and study.to_ask and study.in_flight < self._per_group:
                ready.append((sum(s.width - s.to_ask for s in group), study))
        if not ready:
            left = any(study.to_ask for study in self._all)
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
        elif "error" in result:
            candidate.status, candidate.error = "failed", result["error"]
        else:
            self._keep(candidate, result)
            whole = int(result["part"]) == int(result["parts"])
            candidate.status, candidate.error = "finished" if whole else "stopped", ""
            if not math.isfinite(reward := candidate.rungs[-1]):
                candidate.status, candidate.error = "failed", f"reward: {reward} is not finite"
        outcome = {
            "status": candidate.status,
            "error": candidate.error,
            "figures": candidate.figures,
            "rungs": candidate.rungs,
        }
        self._record({"event": "told"} | _key(candidate) | outcome)
        next(s for s in self._all if s.study == candidate.study).tell(candidate)
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

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher for a snapshot that is never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the truth."""


def _key(candidate: Candidate) -> dict[str, Any]:
    return {"study": candidate.study.name, "number": candidate.number}
