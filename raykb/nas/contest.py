"""Who is trained anew beside what searches found, each architecture once, and who is best."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raykb.engine.arguments import at_least, misfits, refuse
from raykb.nas.genotype import Genotype, SearchSpace, random_genotype
from raykb.nas.scnas import GOLDEN

GOLDEN_LABEL, RANDOM = "golden", "random"
_DRAWS = 1000  # for each random genotype; where there are so few, all of them are had before

Row = Mapping[str, Any]
"""A training: its ``label``, its ``seed``, and metrics by name."""


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
        refuse(misfits(self, random=at_least(0)))


def contest(
    found: Mapping[str, Genotype], space: SearchSpace, *, beside: Beside, generator: torch.Generator
) -> dict[str, Genotype]:
    """Return genotypes by label, of which no two are equal: those found, ``golden``, ``random_0``…

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
    return kept


def best_of(labels: Sequence[str], rows: Sequence[Row], metric: str) -> str:
    """Return the label with the highest mean of a metric over its trainings; the first of equals.

    A label without any is the last.
    """

    def worth(label: str) -> float:
        own = [row[metric] for row in rows if row["label"] == label and metric in row]
        return statistics.fmean(own) if own else float("-inf")

    return max(labels, key=worth)


def mean_by_seed(labels: Sequence[str], rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """Return the mean of random genotypes as rows of one label, for seeds that all of them have.

    There is none of fewer than two of them, for that would be the same again.
    """
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if row["label"] in labels and metric in row:
            by_seed.setdefault(row["seed"], []).append(row[metric])
    return [
        {"label": RANDOM, "seed": seed, metric: statistics.fmean(values)}
        for seed, values in by_seed.items()
        if len(values) == len(labels) > 1
    ]
