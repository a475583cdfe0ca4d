"""What choosing transformations of test images came to: errors by corruption, and the choices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from raykb.report.tables import markdown

Details = Mapping[str, Any]


def errors_by_corruption(trainings: Sequence[Details]) -> str:
    """Return Markdown tables of errors in percent: means over severities, then each severity.

    Args:
        trainings: details of predictors, one a seed: ``errors`` by way to choose and condition.
    """
    ways = list(trainings[0]["errors"])
    conditions = list(trainings[0]["errors"][ways[0]])
    table = np.array(
        [[[one["errors"][w][c] for w in ways] for c in conditions] for one in trainings]
    )
    mean = 100 * table.mean(0)  # (conditions, ways)
    by_corruption: dict[str, list[int]] = {}
    for place, condition in enumerate(conditions):
        by_corruption.setdefault(condition.partition("/")[0], []).append(place)
    head = [way.replace("_", " ") for way in ways]
    means = [[name, *_cells(mean[rows].mean(0))] for name, rows in by_corruption.items()]
    each = [[name, *_cells(mean[row])] for row, name in enumerate(conditions)]
    parts = ["Errors %, means over severities and seeds.", markdown(["corruption", *head], means)]
    parts += ["By severity.", markdown(["corruption/severity", *head], each)]
    return "\n\n".join(parts)


def _cells(values: np.ndarray) -> list[str]:
    return [f"{value:.1f}" for value in values]


def chosen(trainings: Sequence[Details], *, title: str) -> Figure:
    """Draw how often each transformation is the first choice, a row for each corruption.

    Args:
        trainings: details of predictors, one a seed: ``used`` by condition, and ``names``.
        title: of the picture.
    """
    names, found = trainings[0]["names"], dict[str, list[Any]]()
    for one in trainings:
        for condition, shares in one["used"].items():
            found.setdefault(condition.partition("/")[0], []).append(shares)
    shares = 100 * np.array([np.mean(own, axis=0) for own in found.values()])  # percent
    figure = Figure(figsize=(7.6, 1.2 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, own in enumerate(shares):
        for column, share in enumerate(own):
            if share >= 0.5:
                colour = "white" if share > 50 else "black"
                axes.text(
                    column, row, f"{share:.0f}", color=colour, ha="center", va="center", fontsize=8
                )
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(found)), [name.replace("_", " ") for name in found])
    axes.tick_params(length=0)
    axes.set_xlabel("transformation; share of images in %")
    axes.set_title(title.replace("_", " "), fontsize=9)
    return figure
