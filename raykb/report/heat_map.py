"""Tables of values around 0, as colours."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raykb.report.figures import plain_figure

DARK = 0.6  # of the farthest value: from here on letters are white


def heat_map(
    values: pd.DataFrame, texts: pd.DataFrame, *, groups: Mapping[str, int], scale: str
) -> Figure:
    """Draw values by colour, blue above 0 and red below, each with its text; NaN is hatched grey.

    Args:
        values: (rows, columns), by the names that are shown.
        texts: the same.
        groups: of columns, from the left: how many there are by the group's name.
        scale: what the values are; stands beside the colour bar.
    """
    wide = max(0.8, *(0.09 * len(name) / count for name, count in groups.items()))
    figure, axes = plain_figure(2.6 + wide * values.shape[1], 1.9 + 0.32 * len(values))
    far = float(np.nan_to_num(values.abs()).max(initial=1.0))
    image = axes.imshow(values, cmap="RdBu", vmin=-far, vmax=far, aspect="auto")
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        if math.isnan(value):
            _hatch(axes, row, column)
            continue
        ink = "white" if abs(value) > DARK * far else "black"
        text = texts.iloc[row, column]
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_yticks(range(len(values)), list(values.index))
    columns = list(values.columns)
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", fontsize=8)
    _head(axes, groups)
    figure.colorbar(image, ax=axes).set_label(scale, fontsize=8)
    return figure


def _hatch(axes: Axes, row: int, column: int) -> None:
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(
        Rectangle(corner, 1, 1, facecolor="0.85", edgecolor="0.6", hatch="////", linewidth=0)
    )


def _head(axes: Axes, groups: Mapping[str, int]) -> None:
    """Write the names of groups above their columns, and part them."""
    ends = np.cumsum([0, *groups.values()]) - 0.5
    for end in ends[1:-1]:
        axes.axvline(end, color="white", lw=4)
    top = axes.secondary_xaxis("top")
    top.set_xticks((ends[:-1] + ends[1:]) / 2, list(groups), fontsize=9)
    for each in (axes, top):
        each.tick_params(axis="x", length=0)
        each.spines[:].set_visible(False)
