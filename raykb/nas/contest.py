"""Who is trained anew beside what searches found, each architecture once, and who is best."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raykb.engine.arguments import at_least, check_settings
from raykb.nas.genotype import Genotype, SearchSpace, random_genotype
from raykb.nas.halving import Halving
from raykb.nas.scnas import GOLDEN

GOLDEN_LABEL, RANDOM, TRANSFERRED = "golden", "random", "transferred"
_DRAWS = 1000  # for each random genotype; where there are so few, all of them are had before

Row = Mapping[str, Any]
"""A training: its ``label``, its ``seed``, and metrics by name."""


def is_taken(label: str) -> bool:
    """Return whether a label is one that a contest gives itself."""
    return label in {GOLDEN_LABEL, RANDOM, TRANSFERRED} or label.startswith(f"{RANDOM}_")


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Which cells are retrained beside those that were found; a section of the config.

    Args:
        random: genotypes of the same size, drawn at random.
        golden: whether the published cells are among them.
    """

    random: int = 3
    golden: bool = True

    def __post_init__(self) -> None:
        check_settings(self, random=at_least(0))


@dataclass(frozen=True)
class Contest:
    """Genotypes that are trained anew under one budget.

    Attributes:
        found: what searches found, by label, the best first; equal ones, too.
        genotypes: by label, of which no two are equal: those found, ``golden``, ``random_0``, …
    """

    found: Mapping[str, Genotype]
    genotypes: Mapping[str, Genotype]

    @property
    def challengers(self) -> list[str]:
        """Labels of those that were found."""
        return [label for label in self.genotypes if label in self.found]

    @property
    def random(self) -> list[str]:
        """Labels of those that were drawn at random."""
        return [label for label in self.genotypes if label.startswith(f"{RANDOM}_")]

    @property
    def halved(self) -> list[str]:
        """Labels of those that need not all be trained to the end: the published cells must."""
        return [*self.challengers, *self.random]

    def survivors(self, halving: Halving, rows: Sequence[Row], metric: str) -> list[str]:
        """Return who goes on at a rung; the best of those that were found always does.

        Args:
            halving: how many do.
            rows: of the trainings that have come to the rung.
            metric: by whose mean over trainings they are judged; more is better.
        """
        here = {row["label"] for row in rows}
        labels = [label for label in self.halved if label in here]
        found = [label for label in self.challengers if label in here]
        best = [best_of(found, rows, metric)] if found else []
        return list(dict.fromkeys(halving.survivors(worth(labels, rows, metric)) + best))

    def named(self, label: str) -> str:
        """Return a name for the trainings of a label: another genotype makes it another."""
        return f"{label}-{self.genotypes[label].hash}" if label in self.genotypes else label

    def record(self) -> dict[str, Any]:
        """Return all of them as JSON can hold it, each with who found it."""
        told = {
            label: {
                "hash": own.hash,
                "found_by": [name for name, found in self.found.items() if found == own],
                "cells": own.cells,
            }
            for label, own in self.genotypes.items()
        }
        return {"schema": 1, "genotypes": told}


def contest(
    found: Mapping[str, Genotype], space: SearchSpace, *, beside: Beside, generator: torch.Generator
) -> Contest:
    """Return what is trained anew: what was found, the published cells, and random ones.

    Of equal ones the first label stays, so that no architecture is trained twice. Random ones are
    of the size of the first that was found, so that what is compared is where edges are and what
    they do, not how many there are.

    Args:
        found: by label, the best first.
        space: what random ones are drawn from.
        beside: who is added.
        generator: of the random ones.

    Raises:
        ValueError: there are not so many of that size.
    """
    kept: dict[str, Genotype] = {}

    def add(label: str, genotype: Genotype) -> bool:
        new = genotype not in kept.values()
        if new:
            kept[label] = genotype
        return new

    for label, genotype in found.items():
        add(label, genotype)
    if beside.golden:
        add(GOLDEN_LABEL, GOLDEN)
    sizes = next(iter(found.values())).sizes
    for number in range(beside.random):
        draws = (random_genotype(space, sizes, generator) for _ in range(_DRAWS))
        if not any(add(f"{RANDOM}_{number}", drawn) for drawn in draws):
            raise ValueError(
                f"random: {beside.random}, must be at most {number}: there are no more genotypes "
                f"of the sizes {sizes}"
            )
    return Contest(found, kept)


def worth(labels: Sequence[str], rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Return the mean of a metric over the trainings of each label; -inf of one without any."""
    own = {
        label: [row[metric] for row in rows if row["label"] == label and metric in row]
        for label in labels
    }
    return {
        label: statistics.fmean(values) if values else -math.inf for label, values in own.items()
    }


def best_of(labels: Sequence[str], rows: Sequence[Row], metric: str) -> str:
    """Return the label with the highest mean of a metric over its trainings; the first of equals.

    A label without any is the last.
    """
    means = worth(labels, rows, metric)
    return max(labels, key=means.__getitem__)


def mean_by_seed(
    labels: Sequence[str], rows: Sequence[Row], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Return means of random genotypes as rows of one label, for seeds that all of them have.

    There is none of fewer than two of them, for that would be the same again; and no mean of a
    metric that one of them lacks.
    """
    own = [row for row in rows if row["label"] in labels]
    by_seed = {row["seed"]: [each for each in own if each["seed"] == row["seed"]] for row in own}
    return [
        {"label": RANDOM, "seed": seed}
        | {
            metric: statistics.fmean(row[metric] for row in same)
            for metric in metrics
            if all(metric in row for row in same)
        }
        for seed, same in by_seed.items()
        if len(same) == len(labels) > 1
    ]
