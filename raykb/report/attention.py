"""Where a classifier sees its class: heat maps beside the scenes they are of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raykb.report.figures import GREEN, RED, SKY

SIDE = 1.5  # of a scene, in inches
STEP = 1.08  # from a scene to the next, in sides of one
HEADINGS = {"cam": "class activation map", "saol": "attention × evidence"}


def attention(
    images: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    heads: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Draw scenes with the true box, and what each head sees: its map, its box, and the class.

    The box of a head is green where its class is right, else red.

    Args:
        images: (N, C, S, S) uint8.
        boxes: (N, 1, 4) left, top, right and bottom in pixels.
        labels: (N, 1).
        heads: by name ``labels`` (N,), ``maps`` (N, h, w) and ``boxes`` (N, 4) in pixels.
        classes: their names.
        title: of the picture.
    """
    rows, columns, side = len(images), 1 + len(heads), images.shape[3]
    size = (SIDE * STEP * columns, SIDE * STEP * rows + 0.5)  # inches
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()  # one for all: many cost seconds
    for row, image in enumerate(images):
        corner = (0.0, STEP * row)
        shown = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
        _draw(axes, corner, shown, cmap="gray", vmin=0, vmax=255)
        _box(axes, corner, boxes[row, 0] / side, classes[labels[row, 0]], SKY)
        for column, head in enumerate(heads.values(), 1):
            corner, said = (STEP * column, STEP * row), head["labels"][row]
            _draw(axes, corner, np.array(head["maps"][row]), cmap="inferno")
            colour = GREEN if said == labels[row, 0] else RED
            _box(axes, corner, np.array(head["boxes"][row]) / side, classes[said], colour)
    for column, heading in enumerate(["scene", *(HEADINGS[name] for name in heads)]):
        axes.text(STEP * column + 0.5, -0.05, heading, fontsize=7, ha="center", va="bottom")
    axes.set(xlim=(-0.02, STEP * columns), ylim=(STEP * rows, -0.2))
    axes.axis("off")
    axes.set_title(title, fontsize=8)
    return figure


def _draw(axes: Axes, corner: tuple[float, float], values: np.ndarray, **how: Any) -> None:
    """Draw values (S, S) or (S, S, 3) on a square of side 1."""
    left, top = corner
    axes.imshow(values, extent=(left, left + 1, top + 1, top), **how)


def _box(axes: Axes, corner: tuple[float, float], box: np.ndarray, name: str, colour: str) -> None:
    """Draw a box, in sides of the scene, and write a name into the scene's corner."""
    left, top, right, bottom = box + np.tile(corner, 2)
    frame = Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.4
    )
    axes.add_patch(frame)
    style = {"facecolor": "black", "alpha": 0.6, "pad": 0.5, "linewidth": 0}
    place = corner[0] + 0.03, corner[1] + 0.97
    axes.text(*place, name, fontsize=6, color=colour, va="bottom", bbox=style)
