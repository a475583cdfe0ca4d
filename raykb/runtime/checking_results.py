"""What must hold between the end of a run, ``results.json``, and what its trainings found."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from raykb.engine.foreign import parsed
from raykb.runtime.left import RESULTS, Left, Told
from raykb.runtime.train import Result

_AGAIN = "go on by --resume, which writes it again"
_OF_ALL = {"steps", "seconds"}

Row = Mapping[str, Any]


def told(left: Left) -> Told:
    """I8: yield where the end of a run contradicts its trainings."""
    if left.storage.exists(RESULTS):
        try:
            found = parsed(left.storage.read(RESULTS))
            if "results" in found:
                rows = [row for row in found["results"] if "label" in row]
                yield from _unlike(left, rows)
                yield from _late(left, rows, found.get("missing", []))
            elif not _has(found | found["metrics"], left.results):
                yield RESULTS, "no training has its metrics", _AGAIN
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield RESULTS, f"cannot be read ({error!r})", _AGAIN
    if left.tracked is not None and "FINISHED" in {run.status for run in left.tracked.parents}:
        for run in left.tracked.runs:
            if run.status == "KILLED":
                what = "is KILLED in the tracking store, but the whole run is FINISHED"
                yield run.name, what, "go on by --resume, which ends it"


def _unlike(left: Left, rows: Sequence[Row]) -> Told:
    """Yield rows with figures of no training that are no mean of others and no part of one."""
    for row in rows:
        name = _name(row)
        own = [(each, result) for each, result in left.results if _is_of(each.name, name)]
        damaged = any(each.damage and _is_of(each.name, name) for each in left.trainings)
        # I4 has what is damaged; folders of other comparisons have other names
        whole = damaged or _has(row, own or left.results)
        if not (whole or _is_mean(row, rows) or _is_part(row, left.results)):
            yield RESULTS, f"no training has the figures of {name}", _AGAIN


def _late(left: Left, rows: Sequence[Row], missing: Sequence[str]) -> Told:
    """Yield the trainings that are said to be missing, and have a result now."""
    known = set(map(_name, rows))
    for name in missing:
        if name not in known and any(_is_of(each.name, name) for each, _ in left.results):
            yield RESULTS, f"{name} is missing in it, and has a result", _AGAIN


def _name(row: Row) -> str:
    """Return the name of a row's training, as :class:`raykb.comparison.Entry` has it."""
    return f"{row['label']}/seed-{row['seed']}"


def _is_of(folder: str, name: str) -> bool:
    return f"/{folder}".endswith(f"/{name}")


def _has(row: Row, results: Sequence[tuple[Any, Result]]) -> bool:
    """Return whether a row has the figures of one of these trainings."""
    return any(
        _agree(row, result.metrics | {"steps": result.steps, "seconds": result.seconds})
        for _, result in results
    )


def _is_mean(row: Row, rows: Sequence[Row]) -> bool:
    """Return whether a row is the mean of others of its seed, as ``random`` of ``random_0``, …"""
    label, seed = f"{row['label']}_", row["seed"]
    parts = [it for it in rows if it["label"].startswith(label) and it["seed"] == seed]
    shared = set(row).intersection(*parts) - {"label", "seed"}
    return bool(parts) and _agree(row, {name: fmean(it[name] for it in parts) for name in shared})


def _is_part(row: Row, results: Sequence[tuple[Any, Result]]) -> bool:
    """Return whether a training has a row's figures apart, ``test/flip/error`` for ``test/error``.

    One predictor is tested beside ways to choose that need none: each is a row.
    """
    for _, result in results:
        parts: dict[str, dict[str, float]] = {}
        for name, figure in result.metrics.items():
            if name.count("/") == 2:
                split, part, last = name.split("/")
                parts.setdefault(part, {})[f"{split}/{last}"] = figure
        if any(_agree(row, figures) for figures in parts.values()):
            return True
    return False


def _agree(row: Row, figures: Mapping[str, float]) -> bool:
    """Return whether a row has all figures that both have, of which some are metrics."""
    both = row.keys() & figures.keys()
    return not both <= _OF_ALL and all(_same(row[name], figures[name]) for name in both)


def _same(told: float | None, found: float) -> bool:
    """Return whether JSON tells a figure; of what is not finite it tells None."""
    return math.isclose(told, found) if told is not None else not math.isfinite(found)
