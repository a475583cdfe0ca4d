"""Pictures of a search for a policy of augmentation."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from raykb.report.figures import BLUE, GREY, RED, bare, plain_figure, png
from raykb.report.images import image_columns


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
        bare(axes)
    names = ["stopped early", "scored", "best so far"]
    few = not (history["status"] == "stopped").any()  # then without the first of the names
    figure.legend(panels[0, 0].lines[few:], names[few:], loc="outside upper right", ncols=3)
    figure.supxlabel("candidate", fontsize=10)
    figure.supylabel(f"reward: {reward.replace('_', ' ')}", fontsize=10)
    return figure


def search_files(
    rows: Sequence[Mapping[str, Any]],
    reward: str,
    *,
    usage: Mapping[str, int],
    sheet: Mapping[str, Tensor],
) -> dict[str, bytes]:
    """Return the history of a search as a table and a picture, and pictures of what it found.

    Args:
        rows: one for each candidate; see :func:`search_history`.
        reward: what its reward is.
        usage: how often each operation stands in the policy.
        sheet: what the policy does; see :func:`raykb.report.images.image_columns`.
    """
    history = pd.DataFrame(rows)
    return {
        "history.parquet": history.to_parquet(),
        "search_history.png": png(search_history(history, reward)),
        "operation_use.png": png(operation_use(usage)),
        "contact_sheet.png": png(image_columns(sheet)),
    }


def operation_use(usage: Mapping[str, int]) -> Figure:
    """Draw how often each operation stands in a policy, beside an even share."""
    figure, axes = plain_figure(6.4, 0.9 + 0.26 * len(usage))
    names = sorted(usage, key=lambda name: usage[name])
    axes.barh(names, [usage[name] for name in names], color=BLUE, height=0.7)
    even = sum(usage.values()) / len(usage)
    axes.axvline(even, color=RED, linestyle="--", label=f"even share, {even:.1f}")
    axes.set_xlabel("times in the policy")
    axes.legend(fontsize=8, loc="lower right")
    return figure
