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
    """Draw scenes side by side, and below what each head sees: its map, its box, and the class.

    The box of a head is green where its class is right, else red; the true one is blue, and dashed
    on maps, which are as smooth as the boxes were found in them.

    Args:
        images: (N, C, S, S) uint8.
        boxes: (N, 1, 4) left, top, right and bottom in pixels.
        labels: (N, 1).
        heads: by name ``labels`` (N,), ``maps`` (N, h, w) and ``boxes`` (N, 4) in pixels.
        classes: their names.
        title: of the picture.
    """
    rows, columns, side = 1 + len(heads), len(images), images.shape[3]
    size = (SIDE * STEP * columns + 0.3, SIDE * STEP * rows + 0.3)  # inches
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()  # one for all: many cost seconds
    for column, image in enumerate(images):
        corner, truth = (STEP * column, 0.0), boxes[column, 0] / side
        shown = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
        _draw(axes, corner, shown, cmap="gray", vmin=0, vmax=255)
        _box(axes, corner, truth, SKY)
        _name(axes, corner, classes[labels[column, 0]], SKY)
        for row, head in enumerate(heads.values(), 1):
            corner, said = (STEP * column, STEP * row), head["labels"][column]
            _draw(axes, corner, np.array(head["maps"][column]), "bilinear", cmap="inferno")
            colour = GREEN if said == labels[column, 0] else RED
            _box(axes, corner, truth, SKY, linestyle="--")
            _box(axes, corner, np.array(head["boxes"][column]) / side, colour)
            _name(axes, corner, classes[said], colour)
    for row, heading in enumerate(["scene", *(HEADINGS[name] for name in heads)]):
        place = -0.05, STEP * row + 0.5
        axes.text(*place, heading, fontsize=7, rotation=90, ha="right", va="center")
    axes.set(xlim=(-0.2, STEP * columns), ylim=(STEP * rows, -0.02))
    axes.axis("off")
    axes.set_title(title, fontsize=8)
    return figure


def _draw(
    axes: Axes,
    corner: tuple[float, float],
    values: np.ndarray,
    interpolation: str = "nearest",
    **how: Any,
) -> None:
    """Draw values (S, S) or (S, S, 3) on a square of side 1."""
    left, top = corner
    extent = (left, left + 1, top + 1, top)
    axes.imshow(values, extent=extent, interpolation=interpolation, **how)


def _box(axes: Axes, corner: tuple[float, float], box: np.ndarray, colour: str, **how: Any) -> None:
    """Draw a box, in sides of the scene."""
    left, top, right, bottom = box + np.tile(corner, 2)
    size = right - left, bottom - top
    axes.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=colour, lw=1.4, **how))


def _name(axes: Axes, corner: tuple[float, float], name: str, colour: str) -> None:
    """Write a name into a scene's corner."""
    style = {"facecolor": "black", "alpha": 0.6, "pad": 0.5, "linewidth": 0}
    place = corner[0] + 0.03, corner[1] + 0.97
    axes.text(*place, name, fontsize=6, color=colour, va="bottom", bbox=style)
