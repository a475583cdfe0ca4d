"""What must hold between the files of a run and what the tracking store has of it."""

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from raykb.runtime.left import RESULTS, Left, Told, Tracked, spool_of
from raykb.runtime.runs import TrackedRun
from raykb.runtime.studies import LEDGER
from raykb.runtime.tracking import tracked_name
from raykb.runtime.train import Result
from raykb.runtime.work import RESULT

_SHOWN = 5
_REMEDY = f"bring {LEDGER} back from a copy; a run that goes on replays it"

Events = Mapping[tuple[str, int], Sequence[str]]
"""What the ledger says of each candidate, by study and number."""


def pieces(left: Left) -> Told:
    """I1: yield candidates and trainings that ledger, results and tracking store know unlike."""
    try:
        events, scored = _ledger(left)
    except (ValueError, KeyError, TypeError) as error:
        yield LEDGER, f"a line of it cannot be read ({error!r})", _REMEDY
    else:
        yield from _candidates(left, events, scored)
    known = left.tracked
    for training, result in left.results:
        run = known and known.only(training.name)  # else I7 has it
        if known and run and (other := _other_figures(known, run, result)):
            what = f"the tracking store has other figures: {_few(other)}"
            yield f"{training.name}/{RESULT}", what, _compared(left)


def _candidates(left: Left, events: Events, scored: Counter[tuple[str, float]]) -> Told:
    """Yield what is wrong with the ledger, or with what the tracking store has of it."""
    if wrong := _odd(events, ended=left.storage.exists(RESULTS)):
        named = [f"{study}/{number}" for study, number in wrong]
        yield LEDGER, f"has not asked and told once: {_few(named)}", _REMEDY
        return
    known = left.tracked
    if known and known.parents and (other := _other_candidates(known, scored)):  # else I7 has it
        yield LEDGER, f"the tracking store has other figures: {_few(other)}", _compared(left)


def _ledger(left: Left) -> tuple[Events, Counter[tuple[str, float]]]:
    """Return the events of each candidate, and how often each figure of a scored one is there."""
    events, scored = defaultdict[tuple[str, int], list[str]](list), Counter[tuple[str, float]]()
    for record in left.storage.records(LEDGER):
        if record["event"] != "opened":
            events[record["study"], record["number"]].append(record["event"])
        if record.get("status") == "finished":
            scored.update(_finite(record["figures"], "search/").items())
    return events, scored


def runs(left: Left) -> Told:
    """I7: yield what the tracking store lacks, has twice, or has otherwise than it ended."""
    if (known := left.tracked) is None:
        return
    if not known.parents:
        yield "the run", "is not in the tracking store", _sent(left)
        return
    twice = {"the run": known.parents} | known.children
    for name, same in twice.items():
        if len(same) > 1:
            ids = ", ".join(run.id for run in same)
            yield name, f"is {len(same)} times in the tracking store: {ids}", "delete the older"
    for training in left.trainings:
        run = known.only(training.name)
        ended = training.result is not None
        if ended and training.name not in known.children:
            yield training.name, "has ended and is not in the tracking store", _sent(left)
        elif ended and run is not None and run.status not in ("FINISHED", "RUNNING"):
            yield training.name, f"has ended and is {run.status} in the tracking store", _sent(left)
        elif not training.came_to_an_end and run is not None and run.status == "FINISHED":
            what = f"is FINISHED in the tracking store and has no {RESULT}"
            yield training.name, what, "go on by --resume, which trains it to its end"
    if going_on := [run.name for run in known.runs if run.status == "RUNNING"]:
        what = "RUNNING in the tracking store, but no process holds the run directory"
        yield _few(going_on), what, "go on by --resume, or end it by check_run.py --close"


def _sent(left: Left) -> str:
    """Say how what is not in the store comes there."""
    spool = shlex.quote(str(spool_of(left.storage)))
    return f"send what is left by python -m raykb.runtime.tracking {spool}, or go on by --resume"


def _compared(left: Left) -> str:
    return f"{_sent(left)}; if that changes nothing, one of the two was changed by hand"


def _odd(events: Events, *, ended: bool) -> list[tuple[str, int]]:
    """Return the candidates that were not asked and then told once, or are gone between others.

    One in flight when a run was stopped is asked alone, until the run has gone on and ended.
    """
    fine = [["asked", "told"], *[["asked"]] * (not ended)]
    most: dict[str, int] = {}
    for study, number in events:
        most[study] = max(most.get(study, 0), number)
    whole = [(study, number) for study, last in most.items() for number in range(last + 1)]
    return [key for key in whole if events.get(key) not in fine]


def _other_candidates(known: Tracked, scored: Counter[tuple[str, float]]) -> list[str]:
    """Return the figures that ledger and tracking store do not have equally often."""
    searches = [run for run in known.runs if run.name.startswith("search/")]
    names = {name for run in searches for name in run.metrics} - {"search/best"}
    there = Counter(
        (name, value) for run in searches for name in names for _, value in known.history(run, name)
    )
    differ = sorted({*(scored - there), *(there - scored)})
    return [
        f"{name} {value:g} {scored[name, value]} times, tracked {there[name, value]} times"
        for name, value in differ
    ]


def _other_figures(known: Tracked, run: TrackedRun, result: Result) -> list[str]:
    """Return the figures of a result that its run has otherwise, where it was tracked last."""
    other = []
    for name, value in _finite(result.metrics).items():
        points = known.history(run, name)
        last = {found for step, found in points if step == points[-1][0]}
        if last != {value}:
            there = " and ".join(f"{found:g}" for found in sorted(last)) or "not at all"
            other.append(f"{name} {value:g}, tracked {there}")
    return other


def _finite(figures: Mapping[str, float], prefix: str = "") -> dict[str, float]:
    """Return figures as the tracker has them."""
    named = {tracked_name(f"{prefix}{name}"): value for name, value in figures.items()}
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _few(names: Iterable[str]) -> str:
    first, more = (every := list(names))[:_SHOWN], len(every) - _SHOWN
    return ", ".join([*first, *[f"and {more} more"] * (more > 0)])
