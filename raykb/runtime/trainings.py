"""Which tracked trainings are compared, and in what they differ."""

from collections.abc import Sequence

from raykb.runtime.runs import TrackedRun
from raykb.runtime.tracking import LABEL

FAILED = "FAILED"  # MLflow's status of a training that did
OVER = "comparison.over"  # the parameter that says what the labels are
IRRELEVANT = (  # to what a training reaches, or meant to differ
    "training_number",
    "comparison.",
    "recipe.save_every",
    "resources.",
    "storage",
    "stream.name",
    "tracking.",
)


def children(runs: Sequence[TrackedRun]) -> list[TrackedRun]:
    """Return the runs that have none below them."""
    parents = {run.invocation_id for run in runs if run.id != run.invocation_id}
    return [run for run in runs if run.id not in parents]


def is_of(run: TrackedRun, invocations: Sequence[str]) -> bool:
    """Return whether a run is of one of these invocations, by name or id; any is, of none."""
    return not invocations or not {run.invocation, run.invocation_id}.isdisjoint(invocations)


def in_order(runs: Sequence[TrackedRun]) -> list[TrackedRun]:
    """Return trainings by the time at which their invocations began, and by number in each."""
    began = {run.invocation_id: place for place, run in reversed(list(enumerate(runs)))}
    number = "training_number"  # children of an invocation begin at once
    return sorted(runs, key=lambda run: (began[run.invocation_id], int(run.params.get(number, 0))))


def newest(runs: Sequence[TrackedRun], by: str, seed: str) -> list[TrackedRun]:
    """Return the newest training of each label and seed, in the order in which these began.

    One that failed is returned only where none has ended well.

    Args:
        runs: in order; all have the parameters ``by`` and ``seed``.
        by: the parameter that is the label.
        seed: the one that pairs trainings.
    """
    last: dict[tuple[str, str], TrackedRun] = {}
    for run in runs:
        key = run.params[by], run.params[seed]
        if run.status != FAILED or key not in last:
            last.pop(key, None)
            last[key] = run
    return list(last.values())


def over_of(runs: Sequence[TrackedRun], by: str) -> str:
    """Return what is compared: what all trainings name, if by their labels, else the parameter."""
    named = {run.params.get(OVER) for run in runs} if by == LABEL else {by}
    return named.pop() or by if len(named) == 1 else by


def unlike(runs: Sequence[TrackedRun], by: str, seed: str) -> list[str]:
    """Return the parameters in which trainings differ that should be alike, with their values.

    Those of what is compared, as ``method.threshold``, should be alike over its seeds.
    """
    found = dict[str, None]()
    over = over_of(runs, by)
    for one in (None, *dict.fromkeys(run.params[by] for run in runs)):
        some = [run for run in runs if one in (None, run.params[by])]
        for key in _relevant(some, by, seed):
            values = sorted({run.params.get(key, "none") for run in some})
            inner = f"{key}.".startswith(f"{over}.")
            if len(values) > 1 and inner == (one is not None):
                place = f"{one}: " * inner
                found[f"{place}{key}: {', '.join(values)}"] = None
    return list(found)


def differences(runs: Sequence[TrackedRun], by: str, seed: str) -> dict[str, dict[str, str]]:
    """Return the parameters that are not the same for all labels: values by parameter and label.

    Where the trainings of a label have several values, these are joined by commas.
    """
    labels = dict.fromkeys(run.params[by] for run in runs)
    found: dict[str, dict[str, str]] = {}
    for key in _relevant(runs, by, seed):
        values = {label: dict[str, None]() for label in labels}
        for run in runs:
            values[run.params[by]][run.params.get(key, "")] = None
        told = {label: ", ".join(filter(None, own)) for label, own in values.items()}
        if len(set(told.values())) > 1:
            found[key] = told
    return found


def shared(runs: Sequence[TrackedRun]) -> dict[str, str]:
    """Return the parameters that all trainings have, and have alike."""
    first, *others = runs
    return {
        key: value
        for key, value in sorted(first.params.items())
        if all(run.params.get(key) == value for run in others)
    }


def _relevant(runs: Sequence[TrackedRun], by: str, seed: str) -> list[str]:
    keys = {key for run in runs for key in run.params} - {by, seed, LABEL}
    return sorted(key for key in keys if not key.startswith(IRRELEVANT))
