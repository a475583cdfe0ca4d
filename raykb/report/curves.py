"""Pictures of metrics over the steps."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raykb.metrics.names import metric
from raykb.report.costs import History
from raykb.report.figures import COLOURS, bare, literal, png

_COLUMNS = 3
_LINES = ("-", "--", ":")  # where there are more labels than colours
_LEFT_OUT = ("time/", "memory/", "train/stream/", "data/", "cluster/")
_OF_CLASSES = "/class_"  # in the name of what there is of each class


def over_the_steps(histories: Sequence[tuple[str, History]]) -> dict[str, bytes]:
    """Return a PNG of the metrics that have a curve, by name; nothing if none has.

    Args:
        histories: label and history of each training.
    """
    names = curved(histories)
    return {"over-the-steps.png": png(curves(histories, names))} if names else {}


def curved(histories: Sequence[tuple[str, History]], most: int = 12) -> list[str]:
    """Return the metrics that have a curve, of two steps and more: evaluations first, then losses.

    Args:
        histories: label and history of each training.
        most: names that are returned.
    """
    counts: dict[str, int] = {}
    for _, history in histories:
        for name, points in history.items():
            counts[name] = max(counts.get(name, 0), len(points))
    there = [
        name
        for name, count in counts.items()
        if count > 1 and not name.startswith(_LEFT_OUT) and _OF_CLASSES not in name
    ]
    return sorted(there, key=_rank)[:most]


def _rank(name: str) -> tuple[bool, int, bool, str]:
    """Return what is less for a metric that comes first; parts of another come after it."""
    return name.startswith("train/"), name.count("/"), "loss" not in name, name


def curves(histories: Sequence[tuple[str, History]], names: Sequence[str]) -> Figure:
    """Draw metrics over the steps, a panel each: a line a label, its trainings' range as a band.

    Args:
        histories: label and history of each training.
        names: metrics; at least one.
    """
    rows = -(-len(names) // _COLUMNS)
    columns = min(len(names), _COLUMNS)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    labels = list(dict.fromkeys(label for label, _ in histories))
    for name, panel in zip(names, panels.flat, strict=False):
        for place, label in enumerate(labels):
            own = [dict(history.get(name, ())) for one, history in histories if one == label]
            over = _over([points for points in own if points], metric(name).scale)
            again, colour = divmod(place, len(COLOURS))
            line = {"color": COLOURS[colour], "linestyle": _LINES[again % len(_LINES)]}
            panel.plot(over.index, over["mean"], label=literal(label), linewidth=1.4, **line)
            panel.fill_between(over.index, over["min"], over["max"], alpha=0.15, lw=0, **line)
        panel.set_title(metric(name).heading, fontsize=9, loc="left")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.grid(alpha=0.3)
        bare(panel)
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    for panel in panels[-1]:
        panel.set_xlabel("step")
    handles, shown = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, shown, loc="outside upper left", ncols=4, fontsize=8)
    return figure


def _over(trainings: Sequence[dict[int, float]], scale: float) -> pd.DataFrame:
    """Return mean, least and most of trainings at each step."""
    table = pd.DataFrame([pd.Series(points, dtype=float) for points in trainings])
    found = pd.DataFrame({"mean": table.mean(), "min": table.min(), "max": table.max()})
    return found.sort_index() * scale
