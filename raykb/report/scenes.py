"""Scenes with boxes about what is in them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raykb.report.figures import GREEN, GREY, RED, SKY

COLUMNS = 4
SIDE = 1.6  # of a scene, in inches
STEP = 1.12  # from a scene to the next, and its names, in sides of one


def scenes(
    images: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    title: str,
    found: tuple[np.ndarray, Sequence[int]] | None = None,
) -> Figure:
    """Draw scenes with their boxes, and beside these one box that was found in each.

    The latter is green where its class is right, else red, and has the name of the class.

    Args:
        images: (N, C, S, S) uint8.
        boxes: (N, K, 4) left, top, right and bottom in pixels.
        labels: (N, K), -1 for a box that is not there.
        classes: their names.
        title: of the picture.
        found: box (N, 4) and label (N,) in each scene.
    """
    columns, rows = min(COLUMNS, len(images)), -(-len(images) // COLUMNS)
    size = (SIDE * STEP * columns, SIDE * STEP * rows + 0.3)  # inches
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()  # one for all scenes: many cost seconds
    for number, image in enumerate(images):
        corner = STEP * (number % COLUMNS), STEP * (number // COLUMNS)
        _draw(axes, corner, image)
        for box, label in zip(boxes[number], labels[number], strict=True):
            if label >= 0:
                _box(axes, corner, box / image.shape[2], classes[label], SKY)
        if found is not None:
            box, label = found[0][number], found[1][number]
            colour = GREEN if label in labels[number] else RED
            _box(axes, corner, box / image.shape[2], classes[label], colour, below=True)
    axes.set(xlim=(-0.02, STEP * columns), ylim=(STEP * rows, -0.12))
    axes.axis("off")
    axes.set_title(title, fontsize=8)
    return figure


def _draw(axes: Axes, corner: tuple[float, float], image: np.ndarray) -> None:
    """Draw an image (C, S, S) of side 1."""
    shown = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    left, top = corner
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=(left, left + 1, top + 1, top))
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=GREY, linewidth=0.5))


def _box(
    axes: Axes,
    corner: tuple[float, float],
    box: np.ndarray,
    name: str,
    colour: str,
    *,
    below: bool = False,
) -> None:
    """Draw a box, in sides of the scene, with a name above or below it."""
    left, top, right, bottom = box + np.tile(corner, 2)
    wide, tall = right - left, bottom - top
    axes.add_patch(Rectangle((left, top), wide, tall, fill=False, edgecolor=colour, linewidth=1.2))
    place, way = (bottom, "top") if below else (top, "bottom")
    style = {"facecolor": "black", "alpha": 0.6, "pad": 0.5, "linewidth": 0}
    axes.text(left, place, name, fontsize=6, color=colour, va=way, bbox=style)
