"""Folds of named cases: the split that nnU-Net made common for the Decathlon's tasks."""

from collections.abc import Iterable
from typing import NamedTuple

from raykb.later import Later

selection = Later("sklearn.model_selection")


class Fold(NamedTuple):
    """Names of cases to train on and of those held out, both in order."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]


def folds(names: Iterable[str], *, splits: int = 5, seed: int = 12345) -> list[Fold]:
    """Return the folds of a cross-validation; each case is held out in exactly one.

    Equal to scikit-learn's ``KFold(splits, shuffle=True, random_state=seed)`` over the sorted
    names, so that figures can be compared with nnU-Net's, fold by fold.

    Args:
        names: of the cases, in any order.
        splits: number of folds, at least 2.
        seed: of the draw.

    Raises:
        ValueError: there are fewer names than folds, or a name comes twice.
    """
    cases = sorted(names)
    if twice := sorted({name for name in cases if cases.count(name) > 1}):
        raise ValueError(f"names: {', '.join(twice)} come more than once; must be one for a case")
    if not 2 <= splits <= len(cases):
        raise ValueError(
            f"splits: {splits} for {len(cases)} cases, must be in 2..{len(cases)}; give more cases "
            "or ask for fewer folds"
        )
    scheme = selection.KFold(splits, shuffle=True, random_state=seed)
    return [
        Fold(tuple(cases[row] for row in rest), tuple(cases[row] for row in held_out))
        for rest, held_out in scheme.split(cases)
    ]
