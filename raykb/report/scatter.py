"""Points with names, over an axis of magnitudes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from raykb.report.figures import BLUE, plain_figure

Points = Mapping[str, tuple[float, float]]
"""x and y by name."""

POINT = 5.0  # half of the room that a point takes, in 1/72 inch, as all lengths here
STEP = 7.0  # from one ring to the next on which names are tried
RINGS, DIRECTIONS = 40, 16


def scatter(points: Points, *, x: str, y: str, note: str = "") -> Figure:
    """Draw points with their names; x is logarithmic.

    Args:
        points: all x are above 0.
        x: what it is.
        y: the same.
        note: stands above.
    """
    figure, axes = plain_figure(7.0, 4.6)
    axes.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    axes.plot(*zip(*points.values(), strict=True), "o", color=BLUE, ms=6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.12)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(note, loc="left", fontsize=8, wrap=True)
    _name(figure, axes, points)
    return figure


def _name(figure: Figure, axes: Axes, points: Points) -> None:
    """Write each name as near to its point as it hides neither a point nor another name."""
    figure.draw_without_rendering()  # puts the axes where they will be
    unit = figure.dpi / 72
    places = axes.transData.transform(list(points.values())) / unit  # (N, 2)
    room = Bbox(axes.bbox.get_points() / unit)
    taken = [Bbox([place, place]).padded(POINT) for place in places]
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
    line = {"arrowstyle": "-", "color": "0.5", "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
    for (name, point), place in zip(points.items(), places, strict=True):
        measured = axes.text(*point, name, **look)
        drawn = measured.get_window_extent()
        measured.remove()
        extent = (drawn.width / unit + 2.0, drawn.height / unit + 2.0)
        ring, offset, box = _free(place, extent, taken, room)
        arrow = line if ring > STEP else None  # else it is plain which point is meant
        axes.annotate(name, point, offset, textcoords="offset points", arrowprops=arrow, **look)
        taken.append(box)


def _free(
    place: Sequence[float], extent: tuple[float, float], taken: Sequence[Bbox], room: Bbox
) -> tuple[float, tuple[float, float], Bbox]:
    """Return ring, offset and box of the first place that is free; of the last one if none is."""
    width, height = extent
    for ring, right, up in _around(width, height):
        left, bottom = place[0] + right - width / 2, place[1] + up - height / 2
        found = ring, (right, up), Bbox.from_bounds(left, bottom, width, height)
        if _holds(room, found[-1]) and found[-1].count_overlaps(taken) == 0:
            break
    return found


def _holds(room: Bbox, box: Bbox) -> bool:
    return bool(room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1)


def _around(width: float, height: float) -> Iterator[tuple[float, float, float]]:
    """Yield a ring's radius, and how far a box's centre is right of the point and above it."""
    for away in (ring * STEP for ring in range(1, RINGS + 1)):
        for turn in range(DIRECTIONS):
            side = (turn + 1) // 2 * (-1) ** turn  # 0, -1, 1, -2, … from the right to the left
            right, up = (of(2 * math.pi * side / DIRECTIONS) for of in (math.cos, math.sin))
            yield away, right * (away + width / 2), up * (away + height / 2)


def _short(value: float) -> str:
    """Return a number as 0.5, 20, 3 k or 1 M."""
    return f"{value:g}" if value < 1000 else EngFormatter()(value)
