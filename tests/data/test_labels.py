"""Labelled images are drawn once and found again in the same data alone."""

import json

import numpy as np
import pytest

from raykb.data.labels import Labels, from_json, to_json
from raykb.data.records import array_records

PIXELS = np.zeros((90, 4, 4), np.uint8)


def records(labels=None):
    labels = np.arange(90) % 3 if labels is None else labels
    return array_records(PIXELS, labels, ("a", "b", "c"), "images")


def test_a_seed_draws_the_same_labels_and_another_seed_others():
    draw = Labels(count=12).draw
    first, again, other = draw(records(), 1), draw(records(), 1), draw(records(), 2**40)
    assert first.ids.tolist() == again.ids.tolist() != other.ids.tolist()
    assert np.bincount(first.labels).tolist() == [4, 4, 4]


def test_what_was_drawn_is_found_again_wherever_its_rows_are_now():
    draws = [Labels(count=6).draw(records(), seed) for seed in (0, 1)]
    text = to_json(draws)
    reordered = records()
    reordered = reordered.subset(np.arange(90)[::-1])
    for found in (from_json(text, records()), from_json(text, reordered)):
        assert [sorted(one.ids.tolist()) for one in found] == [d.ids.tolist() for d in draws]
        for one in found:
            assert (one.labels == one.ids % 3).all()
    assert json.loads(text)["classes"] == ["a", "b", "c"]


def test_other_data_than_the_run_began_with_are_refused():
    text = to_json([Labels(count=6).draw(records(), 0)])
    with pytest.raises(ValueError, match="2 of the 6 labelled images of split 0, as id"):
        from_json(text, records(np.where(np.arange(90) % 3 == 0, 1, np.arange(90) % 3)))
    with pytest.raises(ValueError, match="are not in the data or have another label"):
        from_json(text, records().subset(np.arange(2)))


@pytest.mark.parametrize("text", ['{"schema": 1, "spl', "{}", '{"splits": [{"ids": [1]}]}'])
def test_a_damaged_file_is_told_as_such(text):
    with pytest.raises(ValueError, match="the labels kept with the run cannot be read"):
        from_json(text, records())


def test_a_class_too_rare_for_its_share_of_the_labels_is_named():
    rare = records(np.repeat([0, 1, 2], [60, 27, 3]))
    with pytest.raises(ValueError, match=r"count: 6, too few of 90 images to .* rare class 'c'"):
        Labels(count=6).draw(rare, 0)
    assert set(Labels(count=30).draw(rare, 0).labels) == {0, 1, 2}


@pytest.mark.parametrize("count", [0, 2, 89])
def test_counts_that_cannot_be_drawn_are_refused(count):
    with pytest.raises(ValueError, match=r"count|size"):
        Labels(count=count).draw(records(), 0)
