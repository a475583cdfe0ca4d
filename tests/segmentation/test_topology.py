"""Patches, strides and kernels keep nnU-Net's rules, and the estimate of memory is its own."""

import math

import numpy as np
import pytest

from raykb.segmentation.topology import Topology, feature_map_size, smaller, topology, widths


def reference(spacing, size):
    """Return strides, kernels and the padded patch, an axis at a time."""
    spacing, left, dims = list(spacing), list(size), range(len(size))
    strides, kernels, kernel, pools = [[1] * len(size)], [], [1] * len(size), [0] * len(size)
    while True:
        axes = [d for d in dims if left[d] >= 8]
        axes = [d for d in axes if spacing[d] / min(spacing[e] for e in axes) < 2]
        if not axes or (len(axes) == 1 and left[axes[0]] < 12):
            break
        for d in dims:
            if spacing[d] / min(spacing) < 2:
                kernel[d] = 3
        for d in axes:
            spacing[d], left[d], pools[d] = 2 * spacing[d], math.ceil(left[d] / 2), pools[d] + 1
        strides.append([2 if d in axes else 1 for d in dims])
        kernels.append(list(kernel))
    kernels.append([3] * len(size))
    padded = [math.ceil(size[d] / 2 ** pools[d]) * 2 ** pools[d] for d in dims]
    return padded, strides, kernels


def as_lists(found):
    return list(found.patch_size), [list(s) for s in found.strides], list(map(list, found[2]))


@pytest.mark.parametrize("seed", range(100))
def test_topologies_are_those_of_the_rules_an_axis_at_a_time(seed):
    numbers = np.random.default_rng(seed)
    axes = int(numbers.integers(2, 4))
    spacing = numbers.choice([0.5, 0.7, 1.0, 1.3, 2.5, 5.0, 10.0], axes).tolist()
    size = (numbers.integers(2, 400, axes) + numbers.choice([0.0, 0.5])).tolist()
    assert as_lists(topology(spacing, size)) == reference(spacing, size)


def test_thick_slices_stay_apart_for_two_stages():
    found = topology((3.6, 0.62, 0.62), (20, 320, 256))
    assert found.kernel_sizes == ((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 5)
    assert found.strides == (
        (1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)
    )  # fmt: skip
    assert (found.divisor, found.patch_size) == ((4, 64, 64), (20, 320, 256))


@pytest.mark.parametrize(("size", "stages"), [(7, 1), (8, 1), (11, 1), (12, 2), (16, 2), (24, 3)])
def test_a_lone_axis_needs_twelve_voxels(size, stages):
    assert len(topology((1.0, 1.0), (size, 4)).strides) == stages


def test_two_axes_need_eight_voxels():
    assert len(topology((1.0, 1.0), (8, 8)).strides) == 2
    assert len(topology((1.0, 1.0), (7, 7)).strides) == 1


def test_channels_double_up_to_the_most():
    assert widths(6, 320) == (32, 64, 128, 256, 320, 320)
    assert widths(3, 100, width=10) == (10, 20, 40)


def test_the_estimate_of_a_cube_of_128_is_within_the_reference():
    found = topology((1.0, 1.0, 1.0), (128, 128, 128))
    assert feature_map_size(found, widths(6, 320), labels=2) == 450_699_264


def test_the_estimate_counts_what_convolutions_put_out():
    found = Topology((8, 4), ((1, 1), (2, 1), (1, 2)), ((3, 3),) * 3)
    encoder = 2 * (3 * 32 + 5 * 16 + 7 * 8)
    decoder = 3 * (3 * 32 + 5 * 16)
    assert feature_map_size(found, (3, 5, 7), labels=2) == encoder + decoder + 2 * 32


def test_the_axis_shrinks_that_covers_most_and_no_size_is_passed_over():
    spacing, median = (1.0, 1.0), (600, 300)
    found = topology(spacing, (256, 256))
    assert found.divisor == (64, 64)
    found = smaller(found, spacing, median)
    assert (found.patch_size, found.divisor) == ((256, 224), (32, 32))
    assert smaller(found, spacing, median).patch_size == (256, 192)


def test_the_axis_is_measured_against_the_median_shape():
    found = smaller(topology((1.0, 1.0), (256, 256)), (1.0, 1.0), (300, 600))
    assert found.patch_size == (224, 256)


def test_of_axes_that_cover_the_same_the_last_shrinks():
    found = smaller(topology((1.0, 1.0, 1.0), (16, 16, 16)), (1.0, 1.0, 1.0), (32, 32, 32))
    assert found.patch_size == (16, 16, 14)


def test_an_axis_of_which_nothing_would_be_left_stays():
    found = smaller(topology((1.0, 1.0), (1, 64)), (1.0, 1.0), (1, 640))
    assert found.patch_size == (1, 56)


def test_nothing_is_smaller_than_a_voxel():
    with pytest.raises(ValueError, match=r"patch_size: \(1, 1\), cannot be made smaller"):
        smaller(topology((1.0, 1.0), (1, 1)), (1.0, 1.0), (1, 1))
