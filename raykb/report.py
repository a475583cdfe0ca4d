"""Tables and pictures of results; pandas and matplotlib, and nothing of raykb.

Figures are made without pyplot, so they need no display and leave no state behind. Colours are
those of Okabe and Ito, which colour-blind readers can tell apart.
"""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

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

Interval = Callable[[Sequence[float], Sequence[float]], tuple[float, float, float, float]]
"""``interval(a, b)``: mean of a - b, its sd, and the low and high end of the mean's interval."""


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def comparison(results: pd.DataFrame, *, subject: str, interval: Interval) -> pd.DataFrame:
    """Return the table of a comparison over paired seeds.

    Args:
        results: a row per training with ``method``, ``seed`` and ``top1`` (a share).
        subject: the method that the others are compared with.
        interval: of paired differences.

    Returns:
        A row per method, in order of appearance: ``method``, ``seeds``, ``mean`` and ``sd`` over
        seeds, and ``difference``, ``low``, ``high``: the subject's score minus the method's, and
        the 95 % interval of its mean. None where a single seed allows no such figure.
    """
    scores = results.pivot(index="seed", columns="method", values="top1")
    rows = []
    for method in dict.fromkeys(results["method"]):
        row: dict[str, object] = {"method": method, "seeds": len(scores)}
        row |= {"mean": scores[method].mean(), "sd": None}
        row |= {"difference": None, "low": None, "high": None}
        if len(scores) > 1:
            row["sd"] = scores[method].std()
        if len(scores) > 1 and method != subject:
            mean, _, low, high = interval(list(scores[subject]), list(scores[method]))
            row |= {"difference": mean, "low": low, "high": high}
        rows.append(row)
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(rows[0]))
    return table


def comparison_text(table: pd.DataFrame, *, subject: str) -> str:
    """Return the table of :func:`comparison` as Markdown, scores in percent."""

    def percent(value: float, form: str = ".2f") -> str:
        return "" if pd.isna(value) else format(100 * value, form)

    rows = [
        [
            str(row["method"]),
            percent(row["mean"]),
            percent(row["sd"]),
            percent(row["difference"], "+.2f"),
            " to ".join(percent(row[end], "+.2f") for end in ("low", "high")).strip(" to"),
        ]
        for row in table.to_dict("records")
    ]
    return markdown(["method", "top-1 %", "sd", f"{subject} − method", "95 % interval"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that reads well in a terminal, too: first column left, rest right."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def comparison_figure(results: pd.DataFrame, table: pd.DataFrame, *, subject: str) -> Figure:
    """Draw every seed of every method, and the mean with its standard deviation; best on top."""
    figure, axes = _figure(7.0, 0.9 + 0.45 * len(table))
    ordered = table.sort_values("mean").to_dict("records")
    for place, row in enumerate(ordered):
        colour = RED if row["method"] == subject else BLUE
        scores = 100 * results.loc[results["method"] == row["method"], "top1"]
        mean, sd = 100 * row["mean"], None if pd.isna(row["sd"]) else 100 * row["sd"]
        axes.errorbar(mean, place, xerr=sd, fmt="D", color=colour, capsize=4, ms=6)
        axes.plot(scores, [place - 0.22] * len(scores), "o", color=colour, alpha=0.5, ms=4)
        figures = f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"
        beside = axes.get_yaxis_transform()
        axes.text(1.02, place, figures, transform=beside, va="center", color=colour, fontsize=9)
    axes.set_yticks(range(len(ordered)), [str(r["method"]).replace("_", " ") for r in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel("test accuracy, top-1 (%): mean ± sd over seeds, and each seed")
    axes.grid(axis="x", alpha=0.3)
    return figure


def search_history(history: pd.DataFrame, reward: str) -> Figure:
    """Draw the reward of every candidate and the best so far: a column a split, a row a round.

    Args:
        history: a row per candidate with ``split``, ``round``, ``number``, ``status``, ``reward``.
        reward: what the reward is, for the axis.
    """
    splits, rounds = sorted(history["split"].unique()), sorted(history["round"].unique())
    size = (max(5.0, 2.6 * len(splits)), 2.4 * len(rounds) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rounds), len(splits), sharex=True, sharey=True, squeeze=False)
    for (turn, split), axes in zip(itertools.product(rounds, splits), panels.flat, strict=True):
        part = history[(history["split"] == split) & (history["round"] == turn)]
        part = part.sort_values("number")
        scored, stopped = (part[part["status"] == s] for s in ("finished", "stopped"))
        axes.plot(stopped["number"], stopped["reward"], "x", color=GREY, ms=4)
        axes.plot(scored["number"], scored["reward"], ".", color=BLUE, alpha=0.7)
        axes.step(scored["number"], scored["reward"].cummax(), where="post", color=RED)
        axes.set_title(f"split {split}, round {turn}", fontsize=9)
        axes.grid(alpha=0.3)
        _bare(axes)
    names = ["stopped early", "scored", "best so far"]
    few = not (history["status"] == "stopped").any()  # then without the first of the names
    figure.legend(panels[0, 0].lines[few:], names[few:], loc="outside upper right", ncols=3)
    figure.supxlabel("candidate", fontsize=10)
    figure.supylabel(f"reward: {reward.replace('_', ' ')}", fontsize=10)
    return figure


def operation_use(usage: Mapping[str, int]) -> Figure:
    """Draw how often each operation stands in a policy, beside an even share."""
    figure, axes = _figure(6.4, 0.9 + 0.26 * len(usage))
    names = sorted(usage, key=lambda name: usage[name])
    axes.barh(names, [usage[name] for name in names], color=BLUE, height=0.7)
    even = sum(usage.values()) / len(usage)
    axes.axvline(even, color=RED, linestyle="--", label=f"even share, {even:.1f}")
    axes.set_xlabel("times in the policy")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def image_columns(columns: Mapping[str, Tensor]) -> Figure:
    """Draw titled columns of images, uint8 (N, C, H, W) each, one or three channels."""
    rows = len(next(iter(columns.values())))
    size = (1.15 * len(columns), 1.15 * rows + 0.85)  # inches
    figure = Figure(figsize=size, layout="compressed")
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, images) in zip(panels.T, columns.items(), strict=True):
        column[0].set_title(title, fontsize=6.5, verticalalignment="bottom")
        for panel, image in zip(column, images.movedim(1, -1).cpu(), strict=True):
            panel.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color="0.8", linewidth=0.5)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    """Take away the frame's upper and right line."""
    axes.spines[["top", "right"]].set_visible(False)
