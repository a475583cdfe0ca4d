"""Where labels stand over many settings: a table, and pictures of each cell and of what it costs.

The figures are those of :mod:`raykb.metrics.standings`.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from raykb.metrics.names import metric
from raykb.metrics.standings import standings
from raykb.report.heat_map import heat_map
from raykb.report.scatter import scatter
from raykb.report.tables import NONE, cell, markdown, records

SCHEMA = 1
RULE = (
    "z: how many standard deviations (ddof 0) of a setting's labels one is above their mean; of a "
    "task, the mean over its settings; overall, the mean over tasks. P(first): share of draws of "
    "seeds in which the overall z is the highest."
)
COSTS = {"seconds": "seconds of training", "parameters": "parameters"}


class Standings:
    """Labels over tasks of one or more settings each; a setting is a metric.

    Args:
        rows: a mapping per training with ``label``, ``seed``, metrics by full name, and what it
            costs, as ``"seconds"``; a value that is missing, None or not finite is none.
        over: what the labels are, as ``"model"``; heads their column.
        tasks: by name the metrics that are a task's settings.
        labels: all of them, those of failed trainings too; by default, as rows have them.
        seeds: their number, from 0 on; by default, those that rows have.

    Attributes:
        labels: best first; then those that miss a cell, in their own order.
        standing: the figures; see :class:`raykb.metrics.standings.Standing`.
        missing: each label and each training that has not all settings; and which, if it has some.

    Raises:
        ValueError: a label is none of ``labels``, or rows or tasks are none of which
            :func:`raykb.metrics.standings.standings` can tell the standings.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        over: str,
        tasks: Mapping[str, Sequence[str]],
        labels: Sequence[str] | None = None,
        seeds: int | None = None,
    ) -> None:
        self.over, self.tasks = over, {task: list(own) for task, own in tasks.items()}
        self._results = _whole([dict(row) for row in rows], labels, seeds)
        self.standing = standings(self._results, tasks=self.tasks)
        z = self.standing.overall["z"].round(9)  # what differs by rounding alone ties
        self.labels = [str(x) for x in z.sort_values(ascending=False, kind="stable").index]
        self._there = _finite(self._results, self.standing.z.columns).notna()
        self.missing = [line for label in z.index for line in self._missing(label)]

    def text(self) -> str:
        """Return the table, how to read it, and what is missing, as Markdown."""
        settings = (f"{task}: {', '.join(own)}" for task, own in self.tasks.items())
        parts = [self._table(), RULE, "; ".join(settings)]
        if self.missing:
            named = "; ".join(self.missing)
            parts.append(f"Missing, and in no mean: {named}. Only who has all settings is overall")
        return "\n\n".join(parts + self.standing.cautions)

    def summary(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold: what is missing is None."""
        own, best_first = self.standing, self.labels
        counts = self._there.groupby(self._results["label"]).sum()
        cells = _long(own.scores.loc[best_first], "setting", "mean")
        cells["z"] = _long(own.z.loc[best_first], "setting", "z")["z"]
        cells["seeds"] = _long(counts.loc[best_first], "setting", "seeds")["seeds"]
        return {
            "schema": SCHEMA,
            "over": self.over,
            "tasks": self.tasks,
            "overall": records(own.overall.loc[best_first].rename_axis("label").reset_index()),
            "by_task": records(_long(own.tasks.loc[best_first], "task", "z")),
            "cells": records(cells),
            "paired_seeds": own.paired,
            "missing": self.missing,
            "cautions": own.cautions,
        }

    def heat_map(self) -> Figure:
        """Draw each label's score in each setting, with z as colour; what is missing is grey."""
        z, scores = (each.loc[self.labels] for each in (self.standing.z, self.standing.scores))
        shown = {name: metric(name) for name in z}
        texts = scores.apply(lambda own: own.map(lambda value: cell(value, shown[own.name])))
        return heat_map(
            z.rename(index=_shown, columns={name: each.heading for name, each in shown.items()}),
            texts,
            groups={_shown(task): len(own) for task, own in self.tasks.items()},
            scale="z in the setting",
        )

    def cost(self, *, cost: str = "seconds", task: str | None = None) -> Figure:
        """Draw z of each label against what its trainings cost in the mean.

        Args:
            cost: its name in the rows.
            task: whose z it is; by default the overall one.

        Raises:
            ValueError: there is no such task, or no label has both a z and a cost above 0.
        """
        if task not in (None, *self.tasks):
            raise ValueError(f"task={task!r}: must be one of {', '.join(self.tasks)}, or None")
        z = self.standing.overall["z"] if task is None else self.standing.tasks[task]
        costs = _finite(self._results, [cost])[cost].groupby(self._results["label"]).mean()
        points = {
            _shown(label): (float(costs[label]), float(z[label]))
            for label in self.labels
            if costs[label] > 0.0 and not math.isnan(z[label])
        }
        if not points:
            raise ValueError(
                f"cost={cost!r}, task={task!r}: no label has both such a z and such a cost "
                "above 0; name a cost that the rows have"
            )
        left = [_shown(label) for label in self.labels if _shown(label) not in points]
        return scatter(
            points,
            x=COSTS.get(cost, cost),
            y="overall z" if task is None else f"z of {_shown(task)}",
            note=f"not drawn, for want of a z or a cost: {', '.join(left)}" if left else "",
        )

    def _table(self) -> str:
        paired, rows = self.standing.paired, []
        for label in self.labels:
            z, rank, won, first = self.standing.overall.loc[label]
            row = [label, *map(_told, self.standing.tasks.loc[label]), _told(z)]
            row += [_told(rank, "{:.2f}"), _told(won * paired, f"{{:g}} of {paired}")]
            rows.append([*row, _told(first, "{:.2f}")])
        head = [self.over, *(f"{task} z" for task in self.tasks), "overall z"]
        return markdown([*head, "mean rank", "seeds won", "P(first)"], rows)

    def _missing(self, label: str) -> list[str]:
        """Return the cells that a label has not, and what each seed lacks of those that it has."""
        own = self._results["label"] == label
        there = self._there[own].set_axis(self._results.loc[own, "seed"])
        cells = there.any()
        seeds = (_lacking(f"{label}/seed-{seed}", row[cells]) for seed, row in there.iterrows())
        return [line for line in (_lacking(label, cells), *seeds) if line]


def _whole(
    rows: list[dict[str, Any]], labels: Sequence[str] | None, seeds: int | None
) -> pd.DataFrame:
    """Return a row for each label and seed, by label; nothing is in those that were not there."""
    rows = [row | {"label": str(row["label"])} for row in rows]
    seen = dict.fromkeys(row["label"] for row in rows)
    order = list(seen if labels is None else labels)
    for label in seen:
        if label not in order:
            raise ValueError(f"label {label!r}: must be one of {', '.join(order)}")
    numbers = dict.fromkeys([*range(seeds or 0), *(row["seed"] for row in rows)])
    known = {(row["label"], row["seed"]) for row in rows}
    pairs = [pair for pair in itertools.product(order, numbers) if pair not in known]
    rows += [{"label": label, "seed": seed} for label, seed in pairs]
    columns = list(dict.fromkeys(["label", "seed", *itertools.chain.from_iterable(rows)]))
    return pd.DataFrame(sorted(rows, key=lambda row: order.index(row["label"])), columns=columns)


def _finite(results: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return columns as numbers, NaN for what is missing."""
    values: pd.DataFrame = results.reindex(columns=names).astype(float)
    return values.where(np.isfinite(values))


def _lacking(name: str, there: "pd.Series[bool]") -> str:
    """Return what lacks which settings; "" if it has all."""
    lacking = list(there.index[~there])
    if len(lacking) == len(there):
        return name * bool(lacking)
    return f"{name} ({', '.join(lacking)})" if lacking else ""


def _shown(name: str) -> str:
    return name.replace("_", " ")


def _long(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """Return a row for each label and column of a table."""
    long = table.rename_axis("label").melt(ignore_index=False, var_name=column, value_name=value)
    whole: pd.DataFrame = long.reset_index()
    return whole


def _told(value: float, form: str = "{:+.2f}") -> str:
    return NONE if math.isnan(value) else form.format(round(value, 2) + 0.0)  # never -0.00
