"""Pictures of searches for an architecture."""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from raykb.report.figures import COLOURS, bare
from raykb.report.told import Told

Curve = dict[int, float]
"""Values by step."""


def searches(told: Sequence[Told]) -> Figure:
    """Draw how searches went, a line each: Dice on the way, how sure they are, and what it costs.

    Args:
        told: of each search, with ``valid/dice`` and ``valid/search/…`` in its history.
    """
    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, squeeze=False)[0]
    titles = (
        "Dice of the likeliest network, shared weights",
        "entropy of an edge, mean, nats",
        "expected multiply-adds, share of the dearest",
    )
    for place, search in enumerate(told):
        colour, name = COLOURS[place % len(COLOURS)], f"{search.label} {search.seed}"
        curves = (_curve(search, "dice"), _entropy(search), _curve(search, "search/expected_cost"))
        for panel, curve in zip(panels, curves, strict=True):
            panel.plot(list(curve), list(curve.values()), color=colour, marker=".", label=name)
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=9, loc="left")
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        bare(panel)
    handles, names = panels[0].get_legend_handles_labels()
    shown = [name.replace("_", " ") for name in names]
    figure.legend(handles, shown, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _curve(search: Told, name: str) -> Curve:
    return dict(search.history.get(f"valid/{name}", ()))


def _entropy(search: Told) -> Curve:
    """Return the mean over types of cells."""
    parts = [
        dict(values)
        for name, values in search.history.items()
        if name.startswith("valid/search/entropy_")
    ]
    steps = sorted(set.intersection(*map(set, parts))) if parts else []
    return {step: fmean(part[step] for part in parts) for step in steps}
