"""Which method is best over many tasks: the significance ranking of the Decathlon.

Medical Segmentation Decathlon: Antonelli et al., Nature Communications 13:4128 (2022).

    1. For each task, region and metric, and each ordered pair (a, b) of methods: Wilcoxon's
       one-sided signed-rank test over cases, "a is better than b".
    2. s_a = number of b that a beats significantly; ranks by s, ties share the best: 1, 1, 3.
    3. The mean of a method's ranks over all (task, region, metric) orders the methods.
    4. Stability: cases of each task are drawn with replacement, and 1 to 3 are done again.

Scores are a table with a row for each method, task, region, metric and case, whose value is better
the higher it is, and at worst 0:

    method  task   region  metric  case     value
    unet    spleen spleen  dice    case_07  0.93

Scores are paired by case. A row that is not there, of a case that the task has elsewhere, counts as
0: the method failed. NaN is no failure (a region that is in neither mask): its pairs are dropped,
as are pairs without a difference. With n pairs left p is 2^-n at best, so up to four are never
significant at 0.05. Cases that are drawn twice tie; the test is exact with ties too, see
:mod:`raykb.metrics.signed_rank`.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
import pandas as pd

from raykb.metrics.signed_rank import Floats, Integers
from raykb.metrics.significance import (
    beaten,
    differing_cases,
    kendall_tau,
    p_values,
    shared_ranks,
)

COLUMNS = ("method", "task", "region", "metric", "case", "value")


class Ranking(NamedTuple):
    """The order of methods, and what it is made of.

    Attributes:
        table: ``method, place, mean_rank``, best first; places share ties as ranks do.
        ranks: ``task, region, metric, method, beaten, rank``.
        pairs: ``task, region, metric, method, rival, differences, p``: of the test that the method
            is better than the rival, and how many differences it had to go by; p is corrected if
            that was asked for.
    """

    table: pd.DataFrame
    ranks: pd.DataFrame
    pairs: pd.DataFrame


class Stability(NamedTuple):
    """How much the order of methods depends on which cases there were.

    Attributes:
        table: ``method, place, low, high``, best first: place over all cases, and the interval of
            places over resamples.
        tau: (resamples,) Kendall's tau-b between the places of a resample and those over all cases;
            NaN where all methods tie.
    """

    table: pd.DataFrame
    tau: Floats

    @property
    def mean_tau(self) -> float:
        """Over resamples that have one; NaN if none has."""
        known = self.tau[~np.isnan(self.tau)]
        return float(known.mean()) if len(known) else float("nan")


class _Task(NamedTuple):
    """Scores of a task, (cells, methods, cases), and its cells: (task, region, metric)."""

    cells: list[tuple[str, str, str]]
    scores: Floats

    @property
    def all_cases(self) -> Integers:
        """The draw that takes each case once: (1, cases)."""
        return np.arange(self.scores.shape[-1])[None]


def significance_ranking(
    scores: pd.DataFrame, *, alpha: float = 0.05, holm: bool = False
) -> Ranking:
    """Rank methods by how many others they beat significantly.

    Args:
        scores: rows with :data:`COLUMNS`.
        alpha: level of each test, in (0, 1).
        holm: correct p by Holm's step-down over the ordered pairs of each task, region and metric;
            the challenge does not.

    Raises:
        ValueError: columns are missing, there is no score, one is there twice or infinite, or alpha
            is out of range.
    """
    methods, tasks = _arranged(scores, alpha)
    ranks, pairs, places = [], [], []
    for task in tasks:
        p = p_values(task.scores, task.all_cases, holm=holm)[:, 0]  # (cells, methods, methods)
        wins, used = beaten(p, alpha), differing_cases(task.scores)
        own = shared_ranks(-wins)
        places.append(own)
        for g, cell in enumerate(task.cells):
            ranks += [(*cell, *row) for row in zip(methods, wins[g], own[g], strict=True)]
            pairs += [
                (*cell, methods[a], methods[b], used[g, a, b], p[g, a, b])
                for a, b in permutations(range(len(methods)), 2)
            ]
    mean = np.concatenate(places).mean(axis=0)
    table = pd.DataFrame({"method": methods, "place": shared_ranks(mean), "mean_rank": mean})
    cell_of = ["task", "region", "metric"]
    return Ranking(
        _best_first(table),
        pd.DataFrame(ranks, columns=[*cell_of, "method", "beaten", "rank"]),
        pd.DataFrame(pairs, columns=[*cell_of, "method", "rival", "differences", "p"]),
    )


def rank_stability(
    scores: pd.DataFrame,
    *,
    seed: int | np.random.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
    alpha: float = 0.05,
    holm: bool = False,
) -> Stability:
    """Rank methods again over cases that are drawn with replacement, task by task.

    A draw takes a case with its scores of all regions, metrics and methods.

    Args:
        scores: as in :func:`significance_ranking`.
        seed: of the draws, or what draws.
        resamples: how often, at least 1.
        confidence: of the intervals of places, in (0, 1).
        alpha: as in :func:`significance_ranking`.
        holm: as there.

    Raises:
        ValueError: as there, or one of the numbers is out of range.
    """
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"resamples={resamples}, confidence={confidence}: must be at least 1, and between 0 "
            "and 1 exclusive"
        )
    methods, tasks = _arranged(scores, alpha)
    rng = np.random.default_rng(seed)
    full: list[Integers] = []
    drawn: list[Integers] = []
    for task in tasks:
        cases = task.scores.shape[-1]
        draws = rng.integers(cases, size=(resamples, cases))
        for ranks, rows in ((full, task.all_cases), (drawn, draws)):
            ranks.append(shared_ranks(-beaten(p_values(task.scores, rows, holm=holm), alpha)))
    (place,) = shared_ranks(np.concatenate(full).mean(axis=0))  # (methods,)
    places = shared_ranks(np.concatenate(drawn).mean(axis=0))  # (resamples, methods)
    ends = (0.5 - confidence / 2.0, 0.5 + confidence / 2.0)
    low, high = np.quantile(places, ends, axis=0, method="inverted_cdf")
    table = pd.DataFrame({"method": methods, "place": place, "low": low, "high": high})
    return Stability(_best_first(table), kendall_tau(place, places))


def _arranged(scores: pd.DataFrame, alpha: float) -> tuple[list[str], list[_Task]]:
    """Return methods, and scores by task; neither depends on the order of rows."""
    missing = [column for column in COLUMNS if column not in scores.columns]
    if missing:
        raise ValueError(f"scores: no column {', '.join(missing)}, must have {', '.join(COLUMNS)}")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha={alpha}: must be between 0 and 1 exclusive")
    if scores.empty:
        raise ValueError("scores: no rows, there is nothing to rank")
    for what, wrong in (
        ("is there twice; give each case one score", scores.duplicated(list(COLUMNS[:-1]))),
        ("is infinite; leave out the row of a case that failed", np.isinf(scores["value"])),
    ):
        if wrong.any():
            raise ValueError(f"scores: {_named(scores[wrong])} {what}")
    methods = sorted(scores["method"].unique(), key=str)
    return methods, [_task(rows, methods) for _, rows in scores.groupby("task", sort=True)]


def _named(rows: pd.DataFrame) -> str:
    """Return what identifies the first row."""
    return " ".join(f"{column}={rows.iloc[0][column]}" for column in COLUMNS[:-1])


def _task(rows: pd.DataFrame, methods: list[str]) -> _Task:
    """Arrange the scores of one task, with 0 where there is no row."""
    cases = sorted(rows["case"].unique(), key=str)
    places = pd.MultiIndex.from_product([methods, cases])
    cells, scores = [], []
    for cell, own in rows.groupby(["task", "region", "metric"], sort=True):
        values = own.set_index(["method", "case"])["value"].astype(float)
        cells.append(cell)
        scores.append(values.reindex(places, fill_value=0.0).to_numpy().reshape(len(methods), -1))
    return _Task(cells, np.stack(scores))


def _best_first(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["place", "method"], ignore_index=True)
