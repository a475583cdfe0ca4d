"""CT is scaled by the data set, all else by the case; what is zero may stay so."""

import numpy as np
import pytest

from raykb.segmentation.fingerprint import Intensities
from raykb.segmentation.normalisation import normalise
from raykb.segmentation.plans import Normalisation

CT = Normalisation("ct", False, Intensities(-100.0, 0.0, 300.0, 50.0, 25.0))
WHOLE, NONZERO = (Normalisation("z_score", nonzero, None) for nonzero in (False, True))


def test_ct_is_clipped_and_scaled_by_the_foreground_of_all_cases():
    image = np.array([[[[-1000, -100, 50, 100, 300, 2000]]]], np.int16)
    found = normalise(image, [CT])
    assert found.dtype == np.float32
    assert found.ravel().tolist() == [-6.0, -6.0, 0.0, 2.0, 10.0, 10.0]


def test_all_else_has_mean_0_and_deviation_1_in_each_case():
    image = np.random.default_rng(0).normal(7.0, 3.0, (2, 6, 7, 8))
    for channel in normalise(image, [WHOLE, WHOLE]):
        assert channel.mean() == pytest.approx(0, abs=1e-6)
        assert channel.std() == pytest.approx(1, abs=1e-6)


def test_what_is_zero_in_all_channels_may_stay_out():
    image = np.random.default_rng(0).normal(7.0, 3.0, (2, 6, 7, 8))
    image[:, :2] = 0
    image[0, 5] = 0
    first, whole = normalise(image, [NONZERO, WHOLE])
    assert np.all(first[:2] == 0)
    assert first[2:].mean() == pytest.approx(0, abs=1e-6)
    assert first[2:].std() == pytest.approx(1, abs=1e-6)
    assert np.all(first[5] < 0)  # another channel is not zero there
    assert np.all(whole[:2] == whole[0, 0, 0])
    assert whole[0, 0, 0] < 0


@pytest.mark.parametrize("how", [WHOLE, NONZERO])
@pytest.mark.parametrize("value", [0.0, 5.0])
def test_what_is_the_same_everywhere_is_0(how, value):
    assert np.all(normalise(np.full((1, 2, 2, 2), value), [how]) == 0)


def test_other_channels_than_the_plans_are_refused():
    with pytest.raises(ValueError, match="image: has 1 channels, the plan 2; must be as many"):
        normalise(np.zeros((1, 2, 2, 2)), [WHOLE, WHOLE])


def test_ct_without_intensities_is_refused():
    with pytest.raises(ValueError, match="ct has no intensities"):
        normalise(np.zeros((1, 2, 2, 2)), [Normalisation("ct", False, None)])
