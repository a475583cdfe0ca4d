"""Tables and pictures of results; pandas and matplotlib, and nothing of raykb.

Figures are made without pyplot, so they need no display and leave no state behind. Colours are
those of Okabe and Ito, which colour-blind readers can tell apart.
"""

import io
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
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
    head = ["method", "top-1 %", "sd", f"{subject} − method", "95 % interval"]
    rows = [head, ["---", "---:", "---:", "---:", "---:"]]
    for row in table.to_dict("records"):
        rows.append(
            [
                str(row["method"]),
                f"{100 * row['mean']:.2f}",
                "" if pd.isna(row["sd"]) else f"{100 * row['sd']:.2f}",
                "" if pd.isna(row["difference"]) else f"{100 * row['difference']:+.2f}",
                ""
                if pd.isna(row["low"])
                else f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}",
            ]
        )
    widths = [max(len(line[column]) for line in rows) for column in range(len(head))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in rows
    )


def comparison_figure(results: pd.DataFrame, table: pd.DataFrame, *, subject: str) -> Figure:
    """Draw every seed of every method, and the mean with its standard deviation."""
    figure, axes = _figure(7.0, 0.9 + 0.45 * len(table))
    order = table.sort_values("mean")["method"].tolist()
    for place, method in enumerate(order):
        colour = RED if method == subject else BLUE
        scores = 100 * results.loc[results["method"] == method, "top1"]
        row = table.loc[table["method"] == method].iloc[0]
        sd = 0.0 if pd.isna(row["sd"]) else 100 * row["sd"]
        axes.errorbar(100 * row["mean"], place, xerr=sd, fmt="D", color=colour, capsize=4, ms=6)
        axes.plot(scores, [place - 0.18] * len(scores), "o", color=colour, alpha=0.5, ms=4)
    axes.set_yticks(range(len(order)), [method.replace("_", " ") for method in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel("test accuracy, top-1 (%): mean ± sd over seeds, and each seed")
    axes.grid(axis="x", alpha=0.3)
    return figure


def search_history(history: pd.DataFrame, reward: str) -> Figure:
    """Draw the reward of every candidate and the best so far, one panel per split and round.

    Args:
        history: a row per candidate with ``split``, ``round``, ``number``, ``status``, ``reward``.
        reward: what the reward is, for the axis.
    """
    studies = list(history.groupby(["split", "round"]))
    columns = min(len(studies), 5)
    rows = -(-len(studies) // columns)
    figure = Figure(figsize=(max(5.0, 3.2 * columns), 2.6 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, ((split, turn), part) in zip(panels, studies, strict=False):
        part = part.sort_values("number")
        scored, stopped = (part[part["status"] == s] for s in ("finished", "stopped"))
        axes.plot(scored["number"], scored["reward"], ".", color=BLUE, alpha=0.7, label="scored")
        if len(stopped):
            axes.plot(
                stopped["number"], stopped["reward"], "x", color=GREY, ms=4, label="stopped early"
            )
        axes.step(
            scored["number"],
            scored["reward"].cummax(),
            where="post",
            color=RED,
            label="best so far",
        )
        axes.set_title(f"split {split}, round {turn}", fontsize=9)
        axes.grid(alpha=0.3)
        _bare(axes)
    for axes in panels[len(studies) :]:
        axes.set_axis_off()
    panels[0].legend(fontsize=8, loc="lower right")
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


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    """Take away the frame's upper and right line."""
    axes.spines[["top", "right"]].set_visible(False)
