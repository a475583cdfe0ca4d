"""The images that a search is done on: drawn, split, and refused before anything is trained."""

import functools

import numpy as np
import pytest

from raykb.augment.settings import SearchSettings
from raykb.data.splits import stratified_folds

LABELS = np.arange(40) % 4
FOLDS = functools.partial(stratified_folds, splits=2)


def test_a_search_splits_a_stratified_draw_of_the_images():
    splits = SearchSettings(images=24).splits(LABELS, FOLDS, seed=3)
    drawn = [np.sort(np.concatenate(split)) for split in splits]
    assert np.array_equal(drawn[0], drawn[1])
    assert np.bincount(LABELS[drawn[0]]).tolist() == [6] * 4
    assert not np.intersect1d(splits[0][1], splits[1][1]).size
    assert all((np.diff(held_out) > 0).all() for _, held_out in splits)


def test_all_images_are_searched_on_unless_fewer_are_asked_for():
    splits = SearchSettings().splits(LABELS, FOLDS, seed=3)
    assert all(len(rest) + len(held_out) == len(LABELS) for rest, held_out in splits)


def test_more_chunks_than_are_held_out_are_refused():
    with pytest.raises(ValueError, match=r"chunks=21: must be in 1\.\.20"):
        SearchSettings(chunks=21).splits(LABELS, FOLDS, seed=0)
