"""What methods are worth on many tasks of segmentation, and how sure their order is.

A figure is the mean over regions of the mean over cases, each case the mean over seeds; its
interval is over cases (:mod:`raykb.metrics.intervals`), its order :mod:`raykb.metrics.ranking`'s.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from raykb.metrics.intervals import CaseMean, case_mean
from raykb.metrics.names import metric
from raykb.metrics.ranking import COLUMNS, Ranking, Stability, rank_stability, significance_ranking
from raykb.report.figures import COLOURS
from raykb.report.tables import NONE, markdown, plain, records

SCHEMA = 1
HOLE = " *"
RULE = "Intervals are 95 % of draws over cases: cases, not trainings, are what varies."

CaseScores = Mapping[str, Mapping[str, float | None]]
"""Of each case, by name, the score of each region; None where it is not defined."""


class Scored(NamedTuple):
    """What one training is worth on the cases that it did not see; a hole has no scores."""

    task: str
    method: str
    fold: int
    seed: int
    scores: Mapping[str, CaseScores] | None  # by metric
    name: str = ""


class TaskTable:
    """Methods on tasks.

    Args:
        scored: all trainings.
        tasks: names of all, in order.
        methods: the same.
        seed: of all draws.
    """

    def __init__(
        self,
        scored: Sequence[Scored],
        *,
        tasks: Sequence[str],
        methods: Sequence[str],
        seed: int = 0,
    ) -> None:
        self.tasks, self.methods, self.seed = list(tasks), list(methods), seed
        self.missing: dict[tuple[str, str], list[str]] = {}
        for each in scored:
            if each.scores is None:
                self.missing.setdefault((each.task, each.method), []).append(each.name)
        self.scores = _over_seeds(scored)
        self.metrics = list(dict.fromkeys(self.scores["metric"]))
        self.means = {
            (task, method, name): self._mean(task, method, name)
            for task in self.tasks
            for method in self.methods
            for name in self.metrics
        }

    @functools.cached_property
    def ranking(self) -> tuple[Ranking, Stability] | None:
        """The order of methods, and how stable it is; None where nothing can be ordered."""
        if len(self.methods) < 2 or self.scores["value"].notna().sum() == 0:
            return None
        own = _with_failures(self.scores, self.methods)
        return significance_ranking(own), rank_stability(own, seed=self.seed)

    def text(self) -> str:
        """Return the table, what is missing, the order, and how to read it, as Markdown."""
        parts = [self._table(), RULE] if self.metrics else ["No training has a result."]
        if names := [name for own in self.missing.values() for name in own]:
            have = "training has" if len(names) == 1 else "trainings have"
            parts.append(
                f"*: {len(names)} {have} no result; cases without a score count in no mean, but as "
                f"0 in the order: {', '.join(names)}"
            )
        if (found := self.ranking) is not None:
            parts.append(_order(*found))
        return "\n\n".join(parts)

    def summary(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold."""
        order: dict[str, Any] = {}
        if (found := self.ranking) is not None:
            ranking, stability = found
            order = {
                "ranking": records(ranking.table),
                "ranks": records(ranking.ranks),
                "places": records(stability.table),
                "mean_tau": plain(stability.mean_tau),
            }
        return {
            "schema": SCHEMA,
            "tasks": [
                {"task": task, "method": method, "metric": name}
                | {key: plain(value) for key, value in mean._asdict().items()}
                for (task, method, name), mean in self.means.items()
            ],
            "cases": records(self.scores),
            "missing": [name for own in self.missing.values() for name in own],
            **order,
        }

    def figures(self) -> dict[str, float]:
        """Return means, their intervals, and the order of methods.

        As ``dice/unet_3d/Task04_Hippocampus``, the same with ``/low`` and ``/high``, and
        ``order/place/unet_3d``, ``order/mean_rank/unet_3d`` and ``order/mean_tau``.
        """
        found: dict[str, float] = {}
        for (task, method, name), (mean, low, high) in self.means.items():
            key = f"{name}/{method}/{task}"
            found |= {key: mean, f"{key}/low": low, f"{key}/high": high}
        if (order := self.ranking) is not None:
            ranking, stability = order
            for row in ranking.table.to_dict("records"):
                for what in ("place", "mean_rank"):
                    found[f"order/{what}/{row['method']}"] = float(row[what])
            found["order/mean_tau"] = stability.mean_tau
        return {key: value for key, value in found.items() if not math.isnan(value)}

    def _mean(self, task: str, method: str, name: str) -> CaseMean:
        own = self.scores.query("task == @task and method == @method and metric == @name")
        cases = own.pivot(index="case", columns="region", values="value").to_dict("index")
        return case_mean(list(cases.values()), seed=self.seed)

    def _over_tasks(self, method: str, name: str) -> float:
        means = [self.means[task, method, name].mean for task in self.tasks]
        known = [mean for mean in means if not math.isnan(mean)]
        return float(np.mean(known)) if known else math.nan

    def _table(self) -> str:
        columns = [(method, name) for name in self.metrics for method in self.methods]
        headings = {name: metric(f"test/{name}").heading for name in self.metrics}
        head = ["task", *(f"{headings[name]} {method}" for method, name in columns)]
        rows = [[task, *(self._cell(task, *column) for column in columns)] for task in self.tasks]
        rows.append(["mean of tasks", *(_percent(self._over_tasks(*c)) for c in columns)])
        return markdown(head, rows)

    def _cell(self, task: str, method: str, name: str) -> str:
        mean, low, high = self.means[task, method, name]
        interval = "" if math.isnan(low) else f" ({_percent(low)} to {_percent(high)})"
        return f"{_percent(mean)}{interval}{HOLE * ((task, method) in self.missing)}"


def slices(panels: Mapping[str, Mapping[str, Any]], *, title: str) -> Figure:
    """Draw a slice for each method, with outlines of the reference (full) and of what it found.

    Args:
        panels: by method the details of :class:`raykb.evaluate.slices.LabelledSlice`.
        title: of the picture.
    """
    figure = Figure(figsize=(2.6 * len(panels), 3.1), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (method, panel) in zip(axes, panels.items(), strict=True):
        axis.imshow(panel["image"], cmap="gray", vmin=0, vmax=255, origin="lower")
        for name, style in (("reference", "solid"), ("prediction", "dashed")):
            plane = np.array(panel[name])
            for label in range(1, plane.max() + 1):
                colour = COLOURS[(label - 1) % len(COLOURS)]
                if (plane == label).any():
                    mask = (plane == label).astype(float)
                    axis.contour(mask, [0.5], colors=[colour], linestyles=style, linewidths=1)
        axis.set(xticks=[], yticks=[])
        axis.set_title(method.replace("_", " "), fontsize=8)
    first = next(iter(panels.values()))
    figure.suptitle(f"{title}, {first['case']}; dashed: prediction", fontsize=7)
    return figure


def _over_seeds(scored: Iterable[Scored]) -> pd.DataFrame:
    """Return a row for each method, task, region, metric and case; the mean over seeds."""
    rows = [
        (each.method, each.task, region, name, case, math.nan if value is None else value)
        for each in scored
        for name, cases in (each.scores or {}).items()
        for case, regions in cases.items()
        for region, value in regions.items()
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    keys = [column for column in COLUMNS if column != "value"]
    means: pd.DataFrame = table.groupby(keys, sort=False, as_index=False)["value"].mean()
    return means


def _with_failures(scores: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return a row for each method and every case that some method has; 0 where there was none."""
    cells = scores[["task", "region", "metric", "case"]].drop_duplicates()
    all_rows = cells.merge(pd.DataFrame({"method": list(methods)}), how="cross")
    found = all_rows.merge(scores, how="left", indicator="had")
    found.loc[found["had"] == "left_only", "value"] = 0.0
    whole: pd.DataFrame = found[list(COLUMNS)]
    return whole


def _order(ranking: Ranking, stability: Stability) -> str:
    places = stability.table.set_index("method")
    rows = [
        [
            str(row["method"]),
            f"{row['place']:g}",
            f"{row['mean_rank']:.2f}",
            "{low:g} to {high:g}".format(**places.loc[row["method"]]),
        ]
        for row in ranking.table.to_dict("records")
    ]
    head = ["order by significance", "place", "mean rank", "95 % of places"]
    tau = stability.mean_tau
    told = "all tie in each draw" if math.isnan(tau) else f"{tau:.2f}"
    return f"{markdown(head, rows)}\n\nKendall's tau over draws of cases, mean: {told}"


def _percent(share: float) -> str:
    return NONE if math.isnan(share) else f"{100 * share:.1f}"
