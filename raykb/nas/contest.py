"""Who is trained anew beside what searches found: each architecture once."""

from collections.abc import Mapping

import torch

from raykb.nas.genotype import Genotype, SearchSpace, random_genotype
from raykb.nas.scnas import GOLDEN

_DRAWS = 1000  # for each random genotype; where there are so few, all of them are had before


def contest(
    found: Mapping[str, Genotype],
    space: SearchSpace,
    *,
    random: int,
    golden: bool,
    generator: torch.Generator,
) -> dict[str, Genotype]:
    """Return genotypes by label, of which no two are equal.

    Of equal ones the first label stays, so that no architecture is trained twice. Random ones are
    of the size of the first that was found, so that what is compared is where edges are and what
    they do, not how many there are.

    Args:
        found: by label, the best first.
        space: what random ones are drawn from.
        random: how many are added, as ``random_0``, …
        golden: whether the published cells are added, as ``golden``.
        generator: of the random ones.

    Raises:
        ValueError: there are not so many of that size.
    """
    kept: dict[str, Genotype] = {}

    def add(label: str, genotype: Genotype) -> bool:
        new = genotype.hash not in {other.hash for other in kept.values()}
        if new:
            kept[label] = genotype
        return new

    for label, genotype in found.items():
        add(label, genotype)
    if golden:
        add("golden", GOLDEN)
    sizes = next(iter(found.values())).sizes
    for number in range(random):
        draws = (random_genotype(space, sizes, generator) for _ in range(_DRAWS))
        if not any(add(f"random_{number}", drawn) for drawn in draws):
            raise ValueError(
                f"random: {random}, must be at most {number}: there are no more genotypes of the "
                f"sizes {sizes}"
            )
    return kept
