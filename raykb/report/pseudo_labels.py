"""How pseudo-labels went over the steps, and what the trainings tell that had them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from raykb.report.confusion import class_accuracy, confusion
from raykb.report.figures import COLOURS, bare, png
from raykb.report.told import Told

FIGURES = {  # of pseudo-labels: what the tracker calls them over the steps, and at the end
    "pseudo_label_accuracy": "correct",
    "pseudo_label_precision": "precision",
    "correct_rate": "confident_and_correct",
    "mask_rate": "mask_rate",
    "cluster_size": "cluster_size",
}
LATE = 0.1  # share of the steps whose mean stands for the end of a training


class Findings(NamedTuple):
    """What trainings told, put together.

    Attributes:
        rows: a row per training with ``label``, ``seed``, its metrics, and the figures of
            pseudo-labels at its end, as ``"pseudo_labels/correct"``.
        files: contents by name; pictures of pseudo-labels only where there are any.
    """

    rows: list[dict[str, Any]]
    files: dict[str, bytes | str]


def told_of(trainings: Sequence[Told], classes: Sequence[str]) -> Findings:
    """Return what finished trainings tell of their pseudo-labels and of the test images.

    Args:
        trainings: in any order of labels and seeds.
        classes: names of the classes, C of them.
    """
    rows, curves = [], []
    sums: dict[str, Any] = {}
    for training in trainings:
        place = {"label": training.label, "seed": training.seed}
        curve = over_steps(training.history, len(classes))
        rows.append(place | training.metrics | at_the_end(curve, training.steps))
        if len(curve):  # supervised learning has no pseudo-labels
            curves.append(curve.assign(**place))
        matrix = np.array(training.details["confusion"])
        sums[training.label] = sums.get(training.label, 0) + matrix
    record = {label: matrix.tolist() for label, matrix in sums.items()}
    record = {"schema": 1, "classes": list(classes), "sums": record}
    files: dict[str, bytes | str] = {
        "class_accuracy.csv": class_accuracy(sums, classes).to_csv(index=False),
        "confusion.json": json.dumps(record),
        "confusion.png": png(confusion(sums, classes)),
    }
    if curves:
        together = pd.concat(curves)
        files["pseudo_labels.png"] = png(pseudo_labels(together))
        files["class_histogram.png"] = png(class_histogram(together, classes))
    return Findings(rows, files)


def over_steps(history: Mapping[str, Sequence[tuple[int, float]]], classes: int) -> pd.DataFrame:
    """Return a row for each logged step with the figures of the pseudo-labels that there are."""
    names = FIGURES | {f"class_share/{number}": f"class_{number}" for number in range(classes)}
    columns = {
        column: pd.Series(dict(history[f"train/{name}"]), dtype=float)
        for name, column in names.items()
        if f"train/{name}" in history
    }
    curve: pd.DataFrame = pd.DataFrame(columns).rename_axis("step").reset_index()
    return curve


def at_the_end(curve: pd.DataFrame, steps: int) -> dict[str, float]:
    """Return the means over the last steps of :func:`over_steps`, by name of the metric."""
    late = curve[curve["step"] > (1.0 - LATE) * steps].mean().dropna()
    return {f"pseudo_labels/{name}": float(late[name]) for name in FIGURES.values() if name in late}


def pseudo_labels(curves: pd.DataFrame) -> Figure:
    """Draw how pseudo-labels went over the steps: a line a label, its seeds' range as a band.

    Args:
        curves: a row per logged step of each training with ``label``, ``seed``, ``step``,
            ``mask_rate``, ``cluster_size`` and, where true labels are known, ``precision`` and
            ``correct``.
    """
    panels = {
        "precision": "of those that count: share that is right",
        "correct": "of all: share that is right",
        "mask_rate": "mask rate: mean weight in the loss",
        "cluster_size": "cluster size: others with the same label",
    }
    there = [name for name in panels if name in curves]
    figure = Figure(figsize=(4.6 * 2, 2.9 * ((len(there) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(there) + 1) // 2, 2, sharex=True, squeeze=False)
    for name, panel in zip(there, axes.flat, strict=False):
        for place, (label, part) in enumerate(curves.groupby("label", sort=False)):
            colour = COLOURS[place % len(COLOURS)]
            over = part.groupby("step")[name]
            mean, low, high = over.mean(), over.min(), over.max()
            shown = str(label).replace("_", " ")
            panel.plot(mean.index, mean, color=colour, label=shown, linewidth=1.4)
            panel.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_title(panels[name], fontsize=9, loc="left")
        panel.set_ylim(bottom=0.0, top=None if name == "cluster_size" else 1.02)
        panel.grid(alpha=0.3)
        bare(panel)
    for panel in axes[-1]:
        panel.set_xlabel("step")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), fontsize=8)
    return figure


def class_histogram(curves: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Draw the share of each class among the pseudo-labels over the steps, a panel a label.

    Args:
        curves: a row per logged step of each training with ``label``, ``seed``, ``step`` and
            ``class_0``, ``class_1``, …
        classes: their names.
    """
    labels = list(dict.fromkeys(curves["label"]))
    tall = 1.2 + 0.18 * min(max(len(classes), 8), 30)
    figure = Figure(figsize=(1.6 + 3.0 * len(labels), tall), layout="constrained")
    panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    columns = [f"class_{number}" for number in range(len(classes))]
    shares = {
        label: curves[curves["label"] == label].groupby("step")[columns].mean() for label in labels
    }
    highest = max(float(share.to_numpy().max()) for share in shares.values())
    for label, panel in zip(labels, panels, strict=True):
        edges = [0.0, *map(float, shares[label].index)]  # a record is of the steps before it
        rows = [number - 0.5 for number in range(len(classes) + 1)]
        values = shares[label].to_numpy().T  # (classes, records)
        image = panel.pcolormesh(edges, rows, values, cmap="viridis", vmin=0.0, vmax=highest)
        panel.set_title(str(label).replace("_", " "), fontsize=9)
        panel.set_xlabel("step")
    if len(classes) <= 30:
        panels[0].set_yticks(range(len(classes)), classes, fontsize=8)
    panels[0].invert_yaxis()
    scale = f"share of the pseudo-labels (even: {1 / len(classes):.3g})"
    figure.colorbar(image, ax=list(panels)).set_label(scale, fontsize=8)
    return figure
