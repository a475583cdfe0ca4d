"""Volumes on another grid keep their borders, thick slices and labels."""

import numpy as np
import pytest

from raykb.data.resampling import resample_image, resample_label, resampled_shape, thick_axis


def ramp(length, axis, size):
    """Return a volume whose values are the mm of its voxels' middles along an axis."""
    middles = (np.arange(size) + 0.5) * length / size
    shape = [4, 4, 4]
    shape[axis] = size
    return np.broadcast_to(np.expand_dims(middles, [a for a in range(3) if a != axis]), shape)


@pytest.mark.parametrize(
    ("spacing", "target", "wanted"),
    [
        ((3.0, 1.0, 1.0), (1.0, 1.0, 2.0), (30, 20, 10)),
        ((1.0, 1.0, 1.0), (1.0, 0.77, 30.0), (10, 26, 1)),
        ((0.1, 0.1, 0.1), (9.0, 9.0, 9.0), (1, 1, 1)),
    ],
)
def test_shapes_cover_as_much(spacing, target, wanted):
    assert resampled_shape((10, 20, 20), spacing, target) == wanted


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 3.5), (1.0, 1.0, 1.0), 2),
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1),
        ((3.0, 1.0, 1.0), (3.0, 1.0, 1.0), None),
        ((4.0, 4.0, 1.0), (1.0, 1.0, 1.0), None),  # two are as far apart: there are no slices
    ],
)
def test_slices_are_thick_above_three_times(spacing, target, axis):
    assert thick_axis(spacing, target) == axis


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("size", [20, 80])
def test_what_is_linear_in_space_stays_so(axis, order, size):
    shape = [4, 4, 4]
    shape[axis] = size
    found = resample_image(ramp(40.0, axis, 40)[None], shape, order=order)[0]
    wanted, inside = ramp(40.0, axis, size), np.arange(size // 5, size - size // 5)
    np.testing.assert_allclose(
        found.take(inside, axis), wanted.take(inside, axis), atol=1e-3, rtol=0
    )


def test_the_same_shape_changes_nothing():
    image = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    assert np.array_equal(resample_image(image, (3, 4, 5)), image)
    label = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    assert np.array_equal(resample_label(label, (3, 4, 5)), label)


def test_along_thick_slices_the_nearest_is_taken():
    image = np.random.default_rng(0).normal(size=(1, 3, 6, 6)).astype(np.float32)
    found = resample_image(image, (9, 6, 6), thick=0)
    assert np.array_equal(found, image.repeat(3, axis=1))
    smooth = resample_image(image, (9, 6, 6))
    assert not np.allclose(smooth, found, atol=0.1)


def test_within_thick_slices_no_other_slice_is_seen():
    image = np.random.default_rng(0).normal(size=(1, 3, 6, 6)).astype(np.float32)
    alone = resample_image(image[:, 1:2], (1, 9, 5), thick=0)
    np.testing.assert_allclose(
        resample_image(image, (3, 9, 5), thick=0)[:, 1:2], alone, atol=1e-5, rtol=0
    )


def test_no_label_comes_up_between_two():
    label = np.zeros((4, 8, 8), np.uint8)
    label[:, 2:6, 2:6] = 3
    label[:, 3:5, 3:5] = 1
    found = resample_label(label, (5, 19, 13))
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 1, 3}
    volume = (label == 3).mean()
    assert (found == 3).mean() == pytest.approx(volume, rel=0.25)


def test_labels_twice_as_fine_and_back_are_the_same():
    label = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.int16)
    label = label.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    fine = resample_label(label, (16, 20, 24))
    assert np.array_equal(resample_label(fine, label.shape), label)
