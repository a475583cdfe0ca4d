"""Which label is best over many settings: means of z-scores, as the Battle of the Backbones has it.

Goldblum, Souri et al., "Battle of the Backbones", NeurIPS 2023, arXiv 2310.19909.

    z_ls = (x_ls - mean_l x_ls) / sd_l x_ls      its sign is flipped where lower is better
    z_lt = mean of z_ls over the settings s of task t
    z_l  = mean of z_lt over tasks, so that a task of many settings counts no more than others

Symbols:
    x_ls   value of label l in setting s, mean over its seeds; mean and sd (ddof 0) are over labels

A cell, which is a label in a setting, is never imputed: z is over the labels that have a value, and
a label has a mean only where it has all of the cells.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from raykb.metrics.intervals import nan_mean
from raykb.metrics.names import metric
from raykb.metrics.signed_rank import Floats, Integers

_ROUNDING = 1e-9  # what is no further apart ties: scores relative to their mean, and z


class Standing(NamedTuple):
    """Where labels stand, a row each in order of appearance; NaN for what is missing.

    Attributes:
        scores: a column a setting, mean over seeds.
        z: the same, as z-scores.
        tasks: a column a task, mean z over its settings.
        overall: of labels with all cells. ``z``: mean over tasks. ``mean_rank``: in a setting,
            among each other, 1 is the best, ties share the mean; averaged as z is. ``won``: share
            of paired seeds on which z is the highest, ties share. ``first``: probability that z is
            the highest, over draws of paired seeds; there must be two.
        paired: number of seeds that all labels with all cells have in every setting.
        cautions: what to know of settings that order nobody.
    """

    scores: pd.DataFrame
    z: pd.DataFrame
    tasks: pd.DataFrame
    overall: pd.DataFrame
    paired: int
    cautions: list[str]


def z_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return z by label (row) and setting (column); more is better in each, NaN stays.

    Where all labels tie, or there is but one, z is 0; :func:`cautions` says so.

    Args:
        scores: means over seeds, NaN where one is missing; columns are full names of metrics.
    """
    z = _z(scores.to_numpy(float) * _signs(scores.columns))
    return pd.DataFrame(z, scores.index, scores.columns)


def cautions(scores: pd.DataFrame) -> list[str]:
    """Return a line for each setting whose z-scores order nobody; scores as for z."""
    found, z = [], z_scores(scores)
    for name in scores.columns:
        if not (count := scores[name].notna().sum()):
            found.append(f"{name}: no label has a value, so that none has overall figures")
        elif (z[name].dropna() == 0.0).all():
            why = "only one label has a value" if count == 1 else "all labels tie"
            found.append(f"{name}: {why}, so that z is 0")
    return found


def standings(
    results: pd.DataFrame, *, tasks: Mapping[str, Sequence[str]], draws: int = 2000, seed: int = 0
) -> Standing:
    """Return where labels stand over tasks.

    Args:
        results: a row a training with ``label``, ``seed`` and a column a setting; what is not
            there, or not finite, is missing.
        tasks: full names of the metrics that are a task's settings.
        draws: of as many seeds, with replacement.
        seed: of the draws.

    Raises:
        ValueError: a task has no setting, one is there twice, or two rows are of one training.
    """
    settings = [name for own in tasks.values() for name in own]
    if not tasks or not all(tasks.values()) or len(set(settings)) < len(settings):
        raise ValueError(f"tasks: {dict(tasks)}, must have settings each, and none of them twice")
    labels, values = _by_seed(results, settings)  # (S, L, K)
    scores = pd.DataFrame(nan_mean(values, 0), labels, settings)
    whole = scores.notna().all(axis=1).to_numpy()
    paired = values[~np.isnan(values[:, whole]).any(axis=(1, 2))] * _signs(settings)
    z, ends = z_scores(scores), np.cumsum([len(own) for own in tasks.values()])[:-1]
    by_task = _task_means(z.to_numpy(), ends)
    ranks = z[whole].round(9).rank(ascending=False).to_numpy()  # of 1 / _ROUNDING
    overall = pd.DataFrame({"z": by_task.mean(axis=1)}, labels)
    overall.loc[whole, "mean_rank"] = _task_means(ranks, ends).mean(axis=1)
    overall.loc[whole, "won"] = nan_mean(_best(paired, ends, whole), 0)
    overall["first"] = np.nan
    if (count := len(paired)) > 1:
        drawn = np.random.default_rng(seed).integers(count, size=(draws, count))
        means = nan_mean(paired[drawn], 1)  # (draws, L, K)
        overall.loc[whole, "first"] = _best(means, ends, whole).mean(axis=0)
    of_tasks = pd.DataFrame(by_task, labels, list(tasks))
    return Standing(scores, z, of_tasks, overall, count, cautions(scores))


def _z(scores: Floats) -> Floats:
    """Return z along labels of (…, L, K), more is better."""
    mean = nan_mean(scores, -2)[..., None, :]
    apart = scores - mean
    sd = np.sqrt(nan_mean(apart**2, -2))[..., None, :]
    tie = sd <= _ROUNDING * np.abs(mean)
    z: Floats = np.where(tie, apart - apart, apart / np.where(tie, 1.0, sd))  # NaN stays
    return z


def _signs(settings: Sequence[str]) -> Floats:
    return np.array([1.0 if metric(name).higher_is_better else -1.0 for name in settings])


def _task_means(values: Floats, ends: Integers) -> Floats:
    """Return (…, T) of (…, K), whose settings stand task by task; NaN where one is missing."""
    return np.stack([own.mean(axis=-1) for own in np.split(values, ends, axis=-1)], axis=-1)


def _best(scores: Floats, ends: Integers, whole: Floats) -> Floats:
    """Return which of the whole labels is best in (draws, L, K): (draws, W), ties share the 1."""
    z = _task_means(_z(scores), ends).mean(axis=-1)[:, whole]
    best = z >= z.max(axis=-1, keepdims=True, initial=-np.inf) - _ROUNDING
    shares: Floats = best / best.sum(axis=-1, keepdims=True)
    return shares


def _by_seed(results: pd.DataFrame, settings: Sequence[str]) -> tuple[list[str], Floats]:
    """Return labels, and values (S, L, K) with NaN for what is missing."""
    labels, seeds = (list(dict.fromkeys(results[key])) for key in ("label", "seed"))
    if (twice := results.duplicated(["label", "seed"])).any():
        label, seed = results.loc[twice, ["label", "seed"]].iloc[0]
        raise ValueError(f"results: two are of {label}/seed-{seed}; must be one of each")
    whole = pd.MultiIndex.from_product([seeds, labels])
    table = results.set_index(["seed", "label"]).reindex(index=whole, columns=settings)
    values = table.to_numpy(float).reshape(len(seeds), len(labels), len(settings))
    return labels, np.where(np.isfinite(values), values, np.nan)
