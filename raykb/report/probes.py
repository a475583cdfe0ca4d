"""What features are worth over the steps, and what lies next to what."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raykb.metrics.names import metric
from raykb.report.figures import COLOURS, GREEN, GREY, RED, plain_figure
from raykb.report.told import Told

LINES = ("solid", "dashed", "dotted", "dashdot")
ROW = 1.25  # height of a row of images and their names, by the side of an image


def probe_curves(trainings: Sequence[Told], name: str) -> Figure:
    """Draw a metric over the steps: a line a label, the range of its seeds as a band.

    What took no step is a level, from which the other lines begin if there is one. Where there are
    more lines than colours, there are no bands, and the legend stands beside, best first.

    Args:
        trainings: in any order of labels and seeds.
        name: of the metric, as ``"test/knn/top1"``; on the way it is ``"valid/knn/top1"``.
    """
    shown, styles = metric(name), itertools.product(LINES, COLOURS)
    initial = [told for told in trainings if not told.steps]
    starts = {told.seed: told.metrics[name] for told in initial}
    trained = _by_label([told for told in trainings if told.steps])
    crowd = len(trained) > len(COLOURS)
    figure, axes = plain_figure(7.6, 4.4) if crowd else plain_figure(6.4, 3.6)
    for label, own in _by_label(initial):
        level = shown.scale * float(np.mean([told.metrics[name] for told in own]))
        axes.axhline(level, color=GREY, linestyle="dashed", linewidth=1.2, label=label)
    one = len(_by_label(initial)) == 1
    for (label, own), (line, colour) in zip(trained, itertools.cycle(styles), strict=False):
        curves = {told.seed: _curve(told, name, starts if one else {}) for told in own}
        table = shown.scale * pd.DataFrame(curves)  # a row a step, a column a seed
        mean = table.mean(axis=1)
        axes.plot(mean.index, mean, "o", ls=line, color=colour, markersize=3, label=label)
        if not crowd:
            low, high = table.min(axis=1), table.max(axis=1)
            axes.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel=shown.heading)
    axes.grid(alpha=0.3)
    lines = axes.get_lines()
    if crowd:
        best = -1.0 if shown.higher_is_better else 1.0
        lines = sorted(lines, key=lambda line: best * float(np.asarray(line.get_ydata())[-1]))
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if crowd else {}
    axes.legend(handles=lines, fontsize=8, **beside)
    return figure


def _by_label(trainings: Sequence[Told]) -> list[tuple[str, list[Told]]]:
    """Return the trainings of each label, as it is shown."""
    labels = dict.fromkeys(told.label for told in trainings)
    own = {label: [told for told in trainings if told.label == label] for label in labels}
    return [(label.replace("_", " "), found) for label, found in own.items()]


def _curve(told: Told, name: str, starts: Mapping[int, float]) -> "pd.Series[float]":
    """Return a metric by step, from that of the initial weights to that of the end."""
    values = {0: starts[told.seed]} if told.seed in starts else {}
    values |= dict(told.history.get(name.replace("test/", "valid/", 1), []))
    return pd.Series(values | {told.steps: told.metrics[name]}, dtype=float).sort_index()


def neighbours(
    found: Mapping[str, Sequence[Any]],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Draw images, one a row, and beside each its nearest; the frame says if the class is its own.

    Args:
        found: ``queries``, positions of test images, and of each its ``nearest`` training images.
        train: images (N, C, H, W) uint8 and labels (N,).
        test: the same of what is asked for.
        classes: their names.
        title: of the picture.
    """
    rows, columns = len(found["queries"]), 1 + len(found["nearest"][0])
    size = (1.1 * columns, ROW * rows + 0.3)  # inches
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()  # one for all images: many cost seconds
    for row, (query, nearest) in enumerate(zip(found["queries"], found["nearest"], strict=True)):
        label = test[1][query]
        _draw(axes, 0, row, test[0][query], classes[label], GREY)
        for column, key in enumerate(nearest, 1):
            own = train[1][key]
            colour = GREEN if own == label else RED
            _draw(axes, column, row, train[0][key], classes[own], colour)
    axes.set(xlim=(-0.05, 1.1 * columns), ylim=(ROW * rows, -0.25))
    axes.axis("off")
    axes.set_title(title, fontsize=8)
    return figure


def _draw(axes: Axes, column: int, row: int, image: np.ndarray, name: str, colour: str) -> None:
    """Draw an image (C, H, W) of side 1 with a frame, and its class above."""
    shown = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    left, top = 1.1 * column, ROW * row
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=(left, left + 1, top + 1, top))
    axes.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=colour, linewidth=1.5))
    axes.text(left + 0.5, top - 0.02, name, fontsize=6, color=colour, ha="center", va="bottom")
