"""What trainings cost, and the best that they reached on the way."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from raykb.metrics.names import COSTS, END, ON_THE_WAY, metric
from raykb.report.tables import markdown

History = Mapping[str, Sequence[tuple[int, float]]]
"""(step, value) pairs by metric."""


def costs(rows: Iterable[Mapping[str, Any]], *, over: str) -> str:
    """Return a Markdown table of the costs of each label: means over its trainings.

    Args:
        rows: a mapping per training with ``label`` and the metrics of
            :data:`raykb.metrics.names.COSTS`; one without is passed over, and so is a column
            without a value.
        over: what the labels are; heads their column.
    """
    table = pd.DataFrame([*rows]).reindex(columns=["label", *COSTS])
    table[list(COSTS)] = table[list(COSTS)].astype(float)
    means = table.groupby("label", sort=False).mean().dropna(axis=1, how="all")
    cells = [
        [str(label), *("" if pd.isna(value) else f"{value:.1f}" for value in row)]
        for label, row in zip(means.index, means.to_numpy(), strict=True)
    ]
    return markdown([over, *(metric(name).heading for name in means)], cells)


def best(history: History, name: str) -> float | None:
    """Return a metric's best value over the steps; None where there is but one, or none.

    On the way a metric of the end, ``"test/top1"``, is called ``"valid/top1"``.
    """
    points = [point for own in names_of(name) for point in history.get(own, ())]
    values = [value for _, value in points]
    choose = max if metric(name).higher_is_better else min
    return choose(values) if len(values) > 1 else None


def names_of(name: str) -> list[str]:
    """Return the names of a metric: that of the end, and that on the way."""
    return list(dict.fromkeys([name, name.replace(END, ON_THE_WAY, 1)]))
