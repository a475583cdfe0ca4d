"""Learning curves of any-time games."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from raykb.metrics.anytime import log_time
from raykb.report.figures import COLOURS, plain_figure

_TICKS = (0, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600)
_APART = 0.05  # of the axis, between two ticks
Ledger = Sequence[Mapping[str, float]]


def learning_curves(
    games: Sequence[tuple[str, Ledger]], budget_s: float, scale_s: float = 60.0
) -> Figure:
    """Draw NAUC over log time, a step at each prediction; the area below a line is its ALC.

    Args:
        games: label and ledger of each game, whose lines have ``log_time``, ``nauc`` and ``alc``.
        budget_s: T.
        scale_s: t0.
    """
    figure, axes = plain_figure(7.2, 4.2)
    for place, label in enumerate(dict.fromkeys(label for label, _ in games)):
        own = [ledger for one, ledger in games if one == label]
        worth = float(np.mean([ledger[-1]["alc"] if ledger else 0.0 for ledger in own]))
        colour = COLOURS[place % len(COLOURS)]
        for number, ledger in enumerate(own):
            times = [0.0, *(line["log_time"] for line in ledger), 1.0]
            scores = [0.0, *(line["nauc"] for line in ledger)]
            told: dict[str, Any] = {} if number else {"label": f"{label}: ALC {worth:.3f}"}
            axes.step(times, [*scores, scores[-1]], where="post", color=colour, lw=1.3, **told)
    ticks: list[int] = []
    for seconds in (*(tick for tick in _TICKS if tick < budget_s), budget_s):
        moment = log_time(seconds, budget_s, scale_s)
        if seconds == budget_s or 1 - moment > _APART:
            if ticks and moment - log_time(ticks[-1], budget_s, scale_s) < _APART:
                continue
            ticks.append(int(seconds))
    axes.set_xticks([log_time(tick, budget_s, scale_s) for tick in ticks], [f"{t}" for t in ticks])
    axes.set(xlabel="seconds, on the scale that the score has", ylabel="NAUC", xlim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    return figure
