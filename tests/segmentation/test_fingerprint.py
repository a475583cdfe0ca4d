"""A fingerprint has shapes after the crop, and intensities of the foreground alone."""

import numpy as np
import pytest
from shared_fingerprints import uniform

from raykb.segmentation.fingerprint import Fingerprint, fingerprint, nonzero_box

SPACING = (2.0, 1.0, 0.5)


def case(*, box=(slice(1, 4), slice(0, 5), slice(2, 8)), value=3.0, channels=1, label=1):
    image = np.zeros((channels, 6, 5, 10), np.float32)
    image[-1][box] = value
    return image, label * (image[-1] > 0).astype(np.uint8), SPACING


def test_the_crop_is_to_where_any_channel_is_not_zero():
    image = np.zeros((2, 6, 5, 10))
    image[0, 1, 2, 3], image[1, 4, 0, 9] = 1, -1
    assert nonzero_box(image) == (slice(1, 5), slice(0, 3), slice(3, 10))
    assert nonzero_box(np.zeros((1, 2, 3, 4))) == (slice(0, 2), slice(0, 3), slice(0, 4))


def test_shapes_spacings_and_sizes_are_of_each_case():
    cases = [case(), case(), case(box=(slice(0, 6),) * 3)]
    found = fingerprint(cases, modalities=["T1"], labels=2)
    assert found.shapes == ((3, 5, 6), (3, 5, 6), (6, 5, 6))
    assert found.spacings_mm == (SPACING,) * 3
    assert found.relative_size == pytest.approx(90 / 300)
    assert (found.modalities, found.labels) == (("T1",), 2)


def test_intensities_are_percentiles_of_the_foreground():
    numbers = np.random.default_rng(0)
    image = numbers.normal(5.0, 2.0, (2, 20, 20, 20)).astype(np.float32)
    label = numbers.integers(0, 3, (20, 20, 20))
    found = fingerprint([(image, label, SPACING)], modalities=["a", "b"], labels=3)
    for channel, intensities in zip(image, found.intensities, strict=True):
        inside = channel[label > 0].astype(np.float64)
        wanted = [*np.percentile(inside, (0.5, 50, 99.5)), inside.mean(), inside.std()]
        of = [
            getattr(intensities, name) for name in ("percentile_00_5", "median", "percentile_99_5")
        ]
        assert [*of, intensities.mean, intensities.std] == pytest.approx(wanted, abs=0.05)


def test_each_case_counts_the_same_however_large_its_foreground():
    large, small = case(value=1.0), case(box=(slice(2, 3),) * 3, value=4.0)
    found = fingerprint([large, small], modalities=["T1"], labels=2)
    assert found.intensities[0].mean == pytest.approx(2.5)
    assert found.intensities[0].std == pytest.approx(1.5)


def test_a_case_without_foreground_has_a_shape_and_no_intensities():
    found = fingerprint([case(), case(value=9.0, label=0)], modalities=["T1"], labels=2)
    assert len(found.shapes) == 2
    assert found.intensities[0].percentile_99_5 == 3.0


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([case(), case(channels=2)], r"case 1, image, label: \(2, 6, 5, 10\) and \(6, 5, 10\)"),
        ([case(label=2)], r"case 0, label: 0\.\.2, must be in 0\.\.1"),
        ([case(value=np.inf)], "case 0, image: has values that are not finite"),
        ([case(label=0)], "cases: none of 1 has a label above 0"),
        ([], "shapes, spacings_mm: 0 and 0, must be one for each case"),
    ],
)
def test_cases_that_cannot_be_used_are_named(cases, message):
    with pytest.raises(ValueError, match=message):
        fingerprint(cases, modalities=["T1"], labels=2)


@pytest.mark.parametrize(
    ("shape", "spacing", "settings", "message"),
    [
        ((0, 1, 1), (1, 1, 1), {}, r"shapes: \(0, 1, 1\), must be positive along each axis"),
        ((1, 1, 1), (1, 1, -1), {}, r"spacings_mm: \(1.0, 1.0, -1.0\), must be positive"),
        ((1, 1, 1), (1, 1, 1), {"labels": 1}, "labels: 1, must be at least 2"),
        ((1, 1, 1), (1, 1, 1), {"modalities": ()}, "modalities, intensities: 0 and 0"),
        ((1, 1, 1), (1, 1, 1), {"relative_size": 1.5}, "relative_size: 1.5, must be above 0"),
    ],
)
def test_impossible_fingerprints_are_refused(shape, spacing, settings, message):
    with pytest.raises(ValueError, match=message):
        uniform(shape, spacing, **settings)


def test_json_brings_the_same_back():
    found = fingerprint([case(), case(value=0.1)], modalities=["T1"], labels=2)
    again = Fingerprint.from_json(found.to_json())
    assert again == found
    assert again.hash == found.hash
