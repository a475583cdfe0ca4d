"""Stratified splits: every part has the classes in the shares of the whole.

Positions go in and out, never images. All is decided by the labels and the seed.
"""

from collections.abc import Callable

import numpy as np

from raykb.later import Later

selection = Later("sklearn.model_selection")

Split = tuple[np.ndarray, np.ndarray]
"""Positions to train on and positions held out."""


def stratified_shuffle_splits(
    labels: np.ndarray, *, splits: int = 5, test_fraction: float = 0.4, seed: int = 0
) -> list[Split]:
    """Return ``splits`` independent splits; the held-out parts of two may overlap.

    Equal to scikit-learn's ``StratifiedShuffleSplit(splits, test_size=test_fraction,
    random_state=seed)``, the folds of Fast AutoAugment's official code (5, 0.4, 0).

    Args:
        labels: (N,) class numbers.
        splits: how many.
        test_fraction: share of the labels that each split holds out, in (0, 1).
        seed: of the draw.

    Raises:
        ValueError: the arguments or the classes do not allow it.
    """
    if splits < 1 or not 0.0 < test_fraction < 1.0:
        raise ValueError(
            f"splits={splits}, test_fraction={test_fraction}: "
            "must be at least 1 and between 0 and 1 exclusive"
        )
    classes = _check_members(labels, 2, "a stratified split")
    heldout = int(np.ceil(test_fraction * len(labels)))
    if min(heldout, len(labels) - heldout) < classes:
        raise ValueError(
            f"test_fraction={test_fraction} of {len(labels)} labels leaves "
            f"{len(labels) - heldout} to train on and {heldout} held out; both need at least "
            f"one for each of {classes} classes. Use more images or a fraction nearer to 0.5"
        )
    scheme = selection.StratifiedShuffleSplit(splits, test_size=test_fraction, random_state=seed)
    return list(scheme.split(np.zeros(len(labels)), labels))


def stratified_folds(labels: np.ndarray, *, splits: int = 5, seed: int = 0) -> list[Split]:
    """Return the splits of a K-fold: each label is held out in exactly one of ``splits``.

    Raises:
        ValueError: ``splits`` is below 2, or a class has fewer members than that.
    """
    if splits < 2:
        raise ValueError(f"splits={splits}: must be at least 2")
    _check_members(labels, splits, f"a {splits}-fold")
    scheme = selection.StratifiedKFold(splits, shuffle=True, random_state=seed)
    return list(scheme.split(np.zeros(len(labels)), labels))


def stratified_subset(labels: np.ndarray, size: int, *, seed: int = 0) -> np.ndarray:
    """Return ``size`` ascending positions, drawn as ``StratifiedShuffleSplit`` draws.

    This is how the papers' reduced sets are made: 4000 of CIFAR-10, 1000 of SVHN.

    Raises:
        ValueError: neither all labels are wanted nor can each class have one label in the subset
            and one outside.
    """
    if size == len(labels):
        return np.arange(len(labels))
    classes = _check_members(labels, 2, "a stratified subset")
    if not classes <= size <= len(labels) - classes:
        raise ValueError(
            f"size={size}: of {len(labels)} labels in {classes} classes a stratified subset has "
            f"{classes} to {len(labels) - classes}, or all {len(labels)}"
        )
    scheme = selection.StratifiedShuffleSplit(1, train_size=size, random_state=seed)
    return np.sort(next(scheme.split(np.zeros(len(labels)), labels))[0])


def stratified_chunks(
    labels: np.ndarray, indices: np.ndarray, chunks: int, *, seed: int = 0
) -> list[np.ndarray]:
    """Deal ``indices`` out to ``chunks`` disjoint parts.

    Both the parts and each class's members in them are equal in number to within one.

    Args:
        labels: (N,) class numbers of the whole set.
        indices: positions to deal out.
        chunks: how many parts, at most as many as there are indices.
        seed: of the order within a class.

    Raises:
        ValueError: ``chunks`` is below 1 or above ``len(indices)``.
    """
    if not 1 <= chunks <= len(indices):
        raise ValueError(f"chunks={chunks}: must be in 1..{len(indices)}, the number of indices")
    shuffled = np.random.default_rng(seed).permutation(indices)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return [by_class[chunk::chunks] for chunk in range(chunks)]


def _check_members(labels: np.ndarray, least: int, purpose: str) -> int:
    """Return the number of classes if each has at least ``least`` members."""
    names, counts = np.unique(labels, return_counts=True)
    if not len(names) or counts.min() < least:
        few = ", ".join(
            f"class {name} has {count}"
            for name, count in zip(names, counts, strict=True)
            if count < least
        )
        raise ValueError(
            f"{purpose} needs at least {least} members of each class, but of {len(labels)} labels "
            f"{few or 'there are none'}. Add images, drop the class or ask for fewer parts"
        )
    return len(names)


SPLITS: dict[str, Callable[..., list[Split]]] = {
    "shuffle": stratified_shuffle_splits,
    "k_fold": stratified_folds,
}
