"""Folds are scikit-learn's over sorted names, whatever order these come in."""

import random

import numpy as np
import pytest

from raykb.data.folds import folds

NAMES = [f"case_{number:03d}" for number in range(13)]


def shuffled(names):
    """Return what ``KFold(5, shuffle=True, random_state=12345)`` holds out, by its own rule."""
    order = np.arange(len(names))
    np.random.RandomState(12345).shuffle(order)
    sizes = np.full(5, len(names) // 5)
    sizes[: len(names) % 5] += 1
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return [[names[row] for row in sorted(part)] for part in parts]


def test_folds_are_nnunets():
    assert [list(fold.held_out) for fold in folds(NAMES)] == shuffled(NAMES)


def test_the_order_of_the_names_is_of_no_account():
    mixed = random.Random(0).sample(NAMES, len(NAMES))
    assert folds(mixed) == folds(NAMES)


def test_each_case_is_held_out_once_and_trained_on_otherwise():
    found = folds(NAMES)
    assert sorted(name for fold in found for name in fold.held_out) == NAMES
    for fold in found:
        assert sorted(fold.training + fold.held_out) == NAMES
        assert list(fold.training) == sorted(fold.training)


def test_splits_and_seed_decide():
    assert len(folds(NAMES, splits=3)) == 3
    assert folds(NAMES, seed=1) != folds(NAMES)


@pytest.mark.parametrize("splits", [1, 14])
def test_folds_without_a_case_are_refused(splits):
    with pytest.raises(ValueError, match=rf"splits: {splits} for 13 cases, must be in 2\.\.13"):
        folds(NAMES, splits=splits)


def test_names_that_come_twice_are_refused():
    with pytest.raises(ValueError, match="names: a come more than once; must be one for a case"):
        folds(["a", "b", "a"], splits=2)
