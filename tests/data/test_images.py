import pickle
from typing import Any

import numpy as np
import pytest

from raykb.data.images import ImageSet


def image_set(**changes: Any) -> ImageSet:
    fields: dict[str, Any] = {
        "images": np.arange(6 * 12, dtype=np.uint8).reshape(6, 1, 4, 3),
        "labels": np.array([0, 1, 2, 0, 1, 2]),
        "ids": np.array([10, 11, 12, 13, 14, 15]),
        "classes": ("a", "b", "c"),
    }
    return ImageSet(**fields | changes)


def test_subset_keeps_rows_together_in_the_order_asked_for():
    subset = image_set().subset(np.array([4, 0]))
    assert len(subset) == 2
    assert subset.ids.tolist() == [14, 10]
    assert subset.labels.tolist() == [1, 0]
    assert np.array_equal(subset.images, image_set().images[[4, 0]])
    assert subset.classes == ("a", "b", "c")


def test_survives_pickling():
    before, after = image_set(), pickle.loads(pickle.dumps(image_set(skipped=("x",))))
    for name in ("images", "labels", "ids"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert after.classes == before.classes
    assert after.skipped == ("x",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((6, 1, 4, 3), np.float32)}, "images: float32.*must be uint8"),
        ({"images": np.zeros((6, 4, 3), np.uint8)}, r"images: uint8 of shape \(6, 4, 3\)"),
        ({"labels": np.array([0, 1])}, r"labels: int64 of shape \(2,\), must be int64 of shape"),
        ({"labels": np.zeros(6, np.int32)}, "labels: int32"),
        ({"labels": np.array([0, 1, 2, 3, 0, 0])}, r"labels: from 0 to 3, must lie in 0\.\.2"),
        ({"labels": np.array([0, -1, 2, 2, 0, 0])}, "labels: from -1 to 2"),
        ({"ids": np.array([1, 1, 2, 2, 3, 4])}, r"ids: \[1, 2\] occur more than once"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        image_set(**changes)


def test_all_contradictions_are_named_at_once():
    with pytest.raises(ValueError, match=r"(?s)labels: .*ids: "):
        image_set(labels=np.zeros(2, np.int64), ids=np.zeros(3, np.int64))


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="images: none"):
        image_set().subset(np.array([], np.int64))
