from itertools import combinations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from raykb.data.splits import (
    SPLITS,
    stratified_chunks,
    stratified_folds,
    stratified_shuffle_splits,
    stratified_subset,
)

UNEVEN = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [40, 31, 17, 12]))


@pytest.mark.parametrize(("splits", "fraction", "seed"), [(5, 0.4, 0), (2, 0.25, 3)])
def test_shuffle_splits_are_scikit_learns(splits: int, fraction: float, seed: int):
    scheme = StratifiedShuffleSplit(n_splits=splits, test_size=fraction, random_state=seed)
    expected = list(scheme.split(UNEVEN, UNEVEN))
    made = stratified_shuffle_splits(UNEVEN, splits=splits, test_fraction=fraction, seed=seed)
    assert len(made) == splits
    for pair, reference in zip(made, expected, strict=True):
        for part, other in zip(pair, reference, strict=True):
            assert np.array_equal(part, other)


def test_the_defaults_are_fast_autoaugments():
    made = stratified_shuffle_splits(UNEVEN)
    same = stratified_shuffle_splits(UNEVEN, splits=5, test_fraction=0.4, seed=0)
    assert len(made) == 5
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(made, same, strict=True))
    overlaps = [np.intersect1d(a[1], b[1]).size for a, b in combinations(made, 2)]
    assert min(overlaps) > 0  # which a K-fold's would not


@pytest.mark.parametrize("scheme", sorted(SPLITS))
def test_every_scheme_gives_disjoint_parts_with_the_shares_of_the_whole(scheme: str):
    shares = np.bincount(UNEVEN) / len(UNEVEN)
    for train, heldout in SPLITS[scheme](UNEVEN):
        assert np.array_equal(np.sort(np.concatenate([train, heldout])), np.arange(100))
        for part in (train, heldout):
            assert np.abs(np.bincount(UNEVEN[part]) - shares * len(part)).max() <= 1


def test_folds_hold_out_each_label_once_and_depend_on_the_seed():
    made = stratified_folds(UNEVEN, splits=3, seed=1)
    assert np.array_equal(np.sort(np.concatenate([pair[1] for pair in made])), np.arange(100))
    other = stratified_folds(UNEVEN, splits=3, seed=2)
    assert not np.array_equal(made[0][1], other[0][1])


@pytest.mark.parametrize("chunks", [1, 3, 7, 60])
@pytest.mark.parametrize("seed", [0, 5])
def test_chunks_share_indices_and_classes_evenly(chunks: int, seed: int):
    indices = np.random.default_rng(1).permutation(100)[:60]
    made = stratified_chunks(UNEVEN, indices, chunks, seed=seed)
    assert len(made) == chunks
    assert np.array_equal(np.sort(np.concatenate(made)), np.sort(indices))
    counts = np.array([np.bincount(UNEVEN[chunk], minlength=4) for chunk in made])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1


def test_the_seed_decides_which_chunk_an_index_is_dealt_to():
    first, second = (
        stratified_chunks(UNEVEN, np.arange(100), 4, seed=seed)[0].tolist() for seed in (0, 1)
    )
    assert sorted(first) != sorted(second)


def test_a_subset_is_the_training_part_of_scikit_learns_split():
    reference = StratifiedShuffleSplit(n_splits=1, train_size=30, test_size=70, random_state=4)
    expected = np.sort(next(reference.split(UNEVEN, UNEVEN))[0])
    assert np.array_equal(stratified_subset(UNEVEN, 30, seed=4), expected)
    assert np.array_equal(stratified_subset(UNEVEN, 100), np.arange(100))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stratified_shuffle_splits(UNEVEN, splits=0), "splits=0"),
        (lambda: stratified_shuffle_splits(UNEVEN, test_fraction=1.0), "test_fraction=1.0"),
        (lambda: stratified_shuffle_splits(UNEVEN, test_fraction=0.01), "1 held out"),
        (lambda: stratified_shuffle_splits(np.array([0, 0, 1])), "class 1 has 1"),
        (lambda: stratified_shuffle_splits(np.array([], np.int64)), "there are none"),
        (lambda: stratified_folds(UNEVEN, splits=1), "splits=1: must be at least 2"),
        (lambda: stratified_folds(UNEVEN, splits=13), "13-fold needs at least 13.*class 3 has 12"),
        (lambda: stratified_subset(UNEVEN, 3), "size=3.* 4 to 96, or all 100"),
        (lambda: stratified_subset(UNEVEN, 97), "size=97"),
        (lambda: stratified_chunks(UNEVEN, np.arange(5), 6), r"chunks=6: must be in 1\.\.5"),
        (lambda: stratified_chunks(UNEVEN, np.arange(5), 0), "chunks=0"),
    ],
)
def test_impossible_splits_are_refused_with_numbers(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
