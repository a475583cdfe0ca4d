"""What the workers of a pipeline ran when."""

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from raykb.report.figures import plain_figure

_PASSES = {"F": "forward", "B": "backward", "I": "backward, inputs", "W": "backward, weights"}
_SHADES = {  # of a pass: (fill, ink) for a worker's first stage, and for its further ones
    "F": (("#56B4E9", "black"), ("#0072B2", "white")),
    "B": (("#E69F00", "black"), ("#D55E00", "white")),
    "I": (("#E69F00", "black"), ("#D55E00", "white")),
    "W": (("#7FD6BA", "black"), ("#009E73", "white")),
}
_IDLE = "0.93"

Span = tuple[str, int, int, float, float]
"""When a pass ran: F, B, or I and W, stage, micro-batch, start and end in seconds."""


def timeline(
    spans_by_worker: Sequence[Sequence[Span]],
    *,
    factors: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Draw what each worker of a pipeline ran when: boxes with the numbers of the micro-batches.

    Args:
        spans_by_worker: of each worker, (``"F"``, ``"B"``, or ``"I"`` and ``"W"`` where the
            backward pass is split, stage, micro-batch, start and end in seconds of a clock that all
            share).
        factors: shares of the time for the heading, in order, such as bubble, balance and runtime.
        title: what ran; stands before the factors.
    """
    figure, axes = plain_figure(10.0, 1.3 + 0.42 * len(spans_by_worker))
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
        for further, kind in sorted(drawn, key=lambda key: ("FBIW".index(key[1]), key[0]))
    ]
    keys.append(Patch(color=_IDLE, label="idle"))
    columns = len(keys) if len(keys) < 6 else -(-len(keys) // 2)  # a stage above its further ones
    figure.legend(handles=keys, loc="outside upper right", ncols=columns, fontsize=8, frameon=False)
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
