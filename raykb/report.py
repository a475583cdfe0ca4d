"""Tables and pictures of results; pandas and matplotlib, and nothing of raykb.

Figures are made without pyplot, so they need no display and leave no state behind. Colours are
those of Okabe and Ito, which colour-blind readers can tell apart.
"""

import io
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
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

_PASSES = {"F": "forward", "B": "backward"}
_SHADES = {  # of a pass: (fill, ink) for a worker's first stage, and for its further ones
    "F": (("#56B4E9", "black"), ("#0072B2", "white")),
    "B": (("#E69F00", "black"), ("#D55E00", "white")),
}
_IDLE = "0.93"

Span = tuple[str, int, int, float, float]
"""When a pass ran: F or B, stage, micro-batch, start and end in seconds."""

Interval = Callable[[Sequence[float], Sequence[float]], tuple[float, float, float, float]]
"""``interval(a, b)``: mean of a - b, its sd, and the low and high end of the mean's interval."""


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def comparison(
    results: pd.DataFrame, *, subject: str, interval: Interval, value: str = "top1"
) -> pd.DataFrame:
    """Return the table of a comparison over paired seeds.

    Args:
        results: a row per training with ``method``, ``seed`` and ``value``; rows without a value
            are left out, and a method's difference is over the seeds that the subject has, too.
        subject: the method that the others are compared with.
        interval: of paired differences.
        value: the column that is compared; as it is by default, a share.

    Returns:
        A row per method, in order of appearance: ``method``, ``seeds``, ``mean`` and ``sd`` over
        seeds, and ``difference``, ``low``, ``high``: the subject's score minus the method's, and
        the 95 % interval of its mean. None where a single seed allows no such figure.
    """
    results = results.dropna(subset=value)
    scores = results.pivot(index="seed", columns="method", values=value)
    columns = ["method", "seeds", "mean", "sd", "difference", "low", "high"]
    rows = []
    for method in dict.fromkeys(results["method"]):
        own = scores[method].dropna()
        row: dict[str, object] = dict.fromkeys(columns)
        row |= {"method": method, "seeds": len(own), "mean": own.mean()}
        if len(own) > 1:
            row["sd"] = own.std()
        if method != subject and subject in scores:
            both = scores[[subject, method]].dropna()
            if len(both) > 1:
                mean, _, low, high = interval(list(both[subject]), list(both[method]))
                row |= {"difference": mean, "low": low, "high": high}
        rows.append(row)
    table: pd.DataFrame = pd.DataFrame(rows, columns=columns)
    return table


def comparison_text(
    table: pd.DataFrame, *, subject: str, heading: str = "top-1 %", scale: float = 100.0
) -> str:
    """Return the table of :func:`comparison` as Markdown, without columns that have nothing to say.

    The number of seeds is told where methods have different ones.

    Args:
        table: of :func:`comparison`.
        subject: the method that the others are compared with.
        heading: of the column of means.
        scale: by which scores are multiplied: 100 makes percent of shares.
    """

    def scaled(value: float, sign: str = "") -> str:
        form = f"{sign}.2f" if scale == 100.0 else f"{sign}.4g"
        return "" if pd.isna(value) else format(scale * value, form)

    uneven = table["seeds"].nunique() > 1
    rows = [
        [
            str(row["method"]),
            str(row["seeds"]) * uneven,
            scaled(row["mean"]),
            scaled(row["sd"]),
            scaled(row["difference"], "+"),
            " to ".join(scaled(row[end], "+") for end in ("low", "high")).strip(" to"),
        ]
        for row in table.to_dict("records")
    ]
    head = ["method", "seeds", heading, "sd", f"{subject} − method", "95 % interval"]
    columns = [c for c in zip(head, *rows, strict=True) if c[0] == heading or any(c[1:])]
    head, *rows = map(list, zip(*columns, strict=True))
    return markdown(head, rows)


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


def pseudo_labels(curves: pd.DataFrame) -> Figure:
    """Draw how pseudo-labels went over the steps: a line a method, its seeds' range as a band.

    Args:
        curves: a row per logged step of each training with ``method``, ``seed``, ``step``,
            ``mask_rate``, ``cluster_size`` and, where true labels are known, ``precision`` and
            ``correct``.
    """
    panels = {
        "precision": "of those that count: share that is right",
        "correct": "of all: share that is right",
        "mask_rate": "mask rate: mean weight in the loss",
        "cluster_size": "cluster size: others with the same label",
    }
    there = [name for name in panels if name in curves]
    figure = Figure(figsize=(4.6 * 2, 2.9 * ((len(there) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(there) + 1) // 2, 2, sharex=True, squeeze=False)
    for name, panel in zip(there, axes.flat, strict=False):
        for place, (method, part) in enumerate(curves.groupby("method", sort=False)):
            colour = COLOURS[place % len(COLOURS)]
            over = part.groupby("step")[name]
            mean, low, high = over.mean(), over.min(), over.max()
            label = str(method).replace("_", " ")
            panel.plot(mean.index, mean, color=colour, label=label, linewidth=1.4)
            panel.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_title(panels[name], fontsize=9, loc="left")
        panel.set_ylim(bottom=0.0, top=None if name == "cluster_size" else 1.02)
        panel.grid(alpha=0.3)
        _bare(panel)
    for panel in axes[-1]:
        panel.set_xlabel("step")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), fontsize=8)
    return figure


def class_histogram(curves: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Draw the share of each class among the pseudo-labels over the steps, a panel a method.

    Args:
        curves: a row per logged step of each training with ``method``, ``seed``, ``step`` and
            ``class_0``, ``class_1``, …
        classes: their names.
    """
    methods = list(dict.fromkeys(curves["method"]))
    tall = 1.2 + 0.18 * min(max(len(classes), 8), 30)
    figure = Figure(figsize=(1.6 + 3.0 * len(methods), tall), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    columns = [f"class_{label}" for label in range(len(classes))]
    shares = {
        method: curves[curves["method"] == method].groupby("step")[columns].mean()
        for method in methods
    }
    highest = max(float(share.to_numpy().max()) for share in shares.values())
    for method, panel in zip(methods, panels, strict=True):
        edges = [0.0, *map(float, shares[method].index)]  # a record is of the steps before it
        rows = [label - 0.5 for label in range(len(classes) + 1)]
        values = shares[method].to_numpy().T  # (classes, records)
        image = panel.pcolormesh(edges, rows, values, cmap="viridis", vmin=0.0, vmax=highest)
        panel.set_title(str(method).replace("_", " "), fontsize=9)
        panel.set_xlabel("step")
    if len(classes) <= 30:
        panels[0].set_yticks(range(len(classes)), classes, fontsize=8)
    panels[0].invert_yaxis()
    label = f"share of the pseudo-labels (even: {1 / len(classes):.3g})"
    figure.colorbar(image, ax=list(panels)).set_label(label, fontsize=8)
    return figure


def class_accuracy(matrices: Mapping[str, Any], classes: Sequence[str]) -> pd.DataFrame:
    """Return the share of each class's images that was recognised: a row a method and class.

    Args:
        matrices: of each method an array (C, C), as :func:`confusion` takes them.
        classes: their names.
    """
    return pd.DataFrame(
        {
            "method": method,
            "class": name,
            "images": int(row.sum()),
            "accuracy": row[label] / row.sum() if row.sum() else None,
        }
        for method, matrix in matrices.items()
        for label, (name, row) in enumerate(zip(classes, matrix, strict=True))
    )


def confusion(matrices: Mapping[str, Any], classes: Sequence[str]) -> Figure:
    """Draw confusion matrices: a row a true class, in percent of its images; a panel a method.

    Args:
        matrices: of each method an array (C, C): how often the class of the row was taken for that
            of the column.
        classes: their names.
    """
    count, named = len(classes), len(classes) <= 30
    side = 1.0 + 0.36 * min(count, 30)
    figure = Figure(figsize=(1.4 + side * len(matrices), side + 0.9), layout="compressed")
    panels = figure.subplots(1, len(matrices), sharey=True, squeeze=False)[0]
    for (method, matrix), panel in zip(matrices.items(), panels, strict=True):
        shares = [[100.0 * n / max(sum(row), 1) for n in row] for row in matrix.tolist()]
        panel.imshow(shares, cmap="Blues", vmin=0.0, vmax=100.0)
        panel.set_title(str(method).replace("_", " "), fontsize=9)
        panel.set_xlabel("taken for", fontsize=8)
        if named:
            panel.set_xticks(range(count), classes, rotation=90, fontsize=7)
        for row, column in itertools.product(range(count if count <= 12 else 0), repeat=2):
            share = shares[row][column]
            if round(share):  # none that would read 0
                ink = "white" if share > 50 else "black"
                panel.text(
                    column, row, f"{share:.0f}", ha="center", va="center", fontsize=6, color=ink
                )
    panels[0].set_ylabel("true class, % of its images", fontsize=8)
    if named:
        panels[0].set_yticks(range(count), classes, fontsize=7)
    return figure


def timeline(
    spans_by_worker: Sequence[Sequence[Span]],
    *,
    factors: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Draw what each worker of a pipeline ran when: boxes with the numbers of the micro-batches.

    Args:
        spans_by_worker: of each worker, (``"F"`` or ``"B"``, stage, micro-batch, start and end in
            seconds of a clock that all share).
        factors: shares of the time for the heading, in order, such as bubble, balance and runtime.
        title: what ran; stands before the factors.
    """
    figure, axes = _figure(10.0, 1.3 + 0.42 * len(spans_by_worker))
    zero = min((span[3] for spans in spans_by_worker for span in spans), default=0.0)
    last = max((span[4] for spans in spans_by_worker for span in spans), default=zero + 1.0)
    inches_per_s = 8.3 / (last - zero)  # about: the axes are what the names leave
    sizes = _number_sizes(spans_by_worker, inches_per_s)
    names, drawn = [], set()
    for row, spans in enumerate(spans_by_worker):
        axes.axhspan(row - 0.36, row + 0.36, color=_IDLE, zorder=0)  # what shows through is idle
        stages = sorted({span[1] for span in spans})
        names.append(_row_name(row, stages))
        for kind, stage, micro_batch, start, end in spans:
            further = min(stages.index(stage), 1)
            drawn.add((further, kind))
            fill, ink = _SHADES[kind][further]
            place, wide = 1e3 * (start - zero), 1e3 * (end - start)
            axes.barh(row, wide, 0.72, place, color=fill, edgecolor="white", linewidth=0.6)
            size, text = sizes[kind], str(micro_batch)
            if size and _text_inches(text, size) <= (end - start) * inches_per_s:
                middle = place + wide / 2
                axes.text(
                    middle, row, text, color=ink, fontsize=size, ha="center", va="center_baseline"
                )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first stage on top
    axes.set_xlim(0.0, 1e3 * (last - zero))
    axes.set_xlabel("time (ms)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(_heading(title, factors or {}), loc="left", fontsize=10)
    keys = [
        Patch(
            color=_SHADES[kind][further][0], label=f"{_PASSES[kind]}{', further stages' * further}"
        )
        for further, kind in sorted(drawn, key=lambda key: (key[0], "FB".index(key[1])))
    ]
    keys.append(Patch(color=_IDLE, label="idle"))
    figure.legend(
        handles=keys, loc="outside upper right", ncols=len(keys), fontsize=8, frameon=False
    )
    return figure


def _number_sizes(
    spans_by_worker: Sequence[Sequence[Span]], inches_per_s: float
) -> dict[str, float | None]:
    """Return the largest font size in which a pass's numbers fit its typical box, or None."""
    sizes: dict[str, float | None] = {}
    for kind in _PASSES:
        spans = [span for spans in spans_by_worker for span in spans if span[0] == kind]
        longest = max((str(span[2]) for span in spans), key=len, default="")
        wide = inches_per_s * statistics.median([span[4] - span[3] for span in spans] or [0.0])
        fitting = (size for size in (8.0, 6.5, 5.5) if _text_inches(longest, size) <= wide)
        sizes[kind] = next(fitting, None)
    return sizes


def _text_inches(text: str, size: float) -> float:
    """Return about how wide a number is in a box: digits of 0.64 em, and a margin."""
    return len(text) * 0.64 * size / 72 + 0.03


def _row_name(worker: int, stages: Sequence[int]) -> str:
    if len(stages) == 1:
        return f"stage {stages[0]}"
    return (
        f"worker {worker}: stages {', '.join(map(str, stages))}" if stages else f"worker {worker}"
    )


def _heading(title: str, factors: Mapping[str, float]) -> str:
    shares = " × ".join(f"{name} {value:.2f}" for name, value in factors.items())
    return ": ".join(part for part in (title, shares) if part)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    """Take away the frame's upper and right line."""
    axes.spines[["top", "right"]].set_visible(False)
