"""What all pictures share: colours, bare axes, and the way to a file.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
GREY = "#999999"


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def literal(text: str) -> str:
    """Return text that matplotlib shows as it is: between dollars it would read formulas."""
    return text.replace("$", r"\$")


def plain_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of one bare diagram; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    bare(axes)
    return figure, axes


def bare(axes: Axes) -> None:
    """Take away the frame's upper and right line."""
    axes.spines[["top", "right"]].set_visible(False)
