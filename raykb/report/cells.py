"""Pictures of cells that a search for an architecture found."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from raykb.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY

Edges = Sequence[tuple[str, str, str]]
"""(node, source, operation) each."""

# 1. inputs on the left, 2. nodes, each in a column of its own and higher or lower by turns, so that
# arrows over several columns go between them, 3. what is concatenated on the right
PLACES = {
    "s0": (0.0, 1.1),
    "s1": (0.0, -1.1),
    "n0": (1.6, 1.1),
    "n1": (3.2, -1.1),
    "n2": (4.8, 1.1),
    "n3": (6.4, -1.1),
    "out": (8.0, 0.0),
}
CONCATENATED = {"n1", "n2", "n3"}
COLOURS = {
    "identity": GREY,
    "avg_pool_3": ORANGE,
    "conv_3": BLUE,
    "conv_3_dilation_2": GREEN,
    "conv_3_dilation_3": PURPLE,
}


def cells(edges: Mapping[str, Edges], *, title: str = "") -> Figure:
    """Draw cells as boxes and arrows, an arrow an edge with its operation; a panel a cell.

    Args:
        edges: of each type of cell.
        title: of the whole picture.
    """
    figure = Figure(figsize=(11.0, 7.4), layout="constrained")
    panels = figure.subplots(2, 2, squeeze=False)
    for (kind, own), panel in zip(edges.items(), panels.flat, strict=True):
        _cell(panel, own)
        panel.set_title(kind.replace("_", " "), fontsize=11, loc="left")
    used = [name for name in COLOURS if any(e[2] == name for own in edges.values() for e in own)]
    lines = [panels[0, 0].plot([], [], color=COLOURS[name], linewidth=2)[0] for name in used]
    lines += panels[0, 0].plot([], [], color=SKY, linestyle=":", linewidth=2)
    names = [*(name.replace("_", " ") for name in used), "concatenated"]
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=9)
    figure.suptitle(title.replace("_", " "), fontsize=12)
    return figure


def _cell(axes: Axes, edges: Edges) -> None:
    """Draw one cell; a node that its output does not depend on is left out."""
    used = {end for node, source, _ in edges for end in (node, source)}
    for node, source, operation in edges:
        _arrow(axes, source, node, COLOURS.get(operation, RED), "-")
    for node in sorted(CONCATENATED & used):
        _arrow(axes, node, "out", SKY, ":")
    for name in sorted({"s0", "s1", "out"} | used):
        x, y = PLACES[name]
        box = FancyBboxPatch(
            (x - 0.3, y - 0.2),
            0.6,
            0.4,
            boxstyle="round,pad=0.06",
            facecolor="white" if name in used or name == "out" else "#eeeeee",
            edgecolor="black",
            zorder=3,
        )
        axes.add_patch(box)
        axes.text(x, y, name, ha="center", va="center", fontsize=10, zorder=4)
    axes.set_xlim(-0.6, 8.6)
    axes.set_ylim(-2.1, 2.1)
    axes.axis("off")


def _arrow(axes: Axes, source: str, target: str, colour: str, style: str) -> None:
    """Draw an arrow between boxes, bent away from the boxes that stand between the two."""
    (x, y), (to_x, to_y) = PLACES[source], PLACES[target]
    columns = abs(to_x - x) / (PLACES["n1"][0] - PLACES["n0"][0])
    same = y * to_y > 0  # both are on one side, and so is what is between them
    bend = 0.28 * (-1 if y > 0 else 1) if same and columns > 1 else 0.06
    axes.annotate(
        "",
        xy=(to_x, to_y),
        xytext=(x, y),
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "linestyle": style,
            "linewidth": 1.6,
            "shrinkA": 18,
            "shrinkB": 18,
            "connectionstyle": f"arc3,rad={bend}",
        },
        zorder=2,
    )
