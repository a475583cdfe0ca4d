"""Numbers by key: those of the house's own streams, and as random as they have to be."""

import numpy as np
import pytest
import torch

from raykb.data.keyed_numbers import keyed_bits, keyed_normals, keyed_uniforms

KEYS = torch.tensor([0.0, 0.25, 0.7, 1 - 2.0**-53], dtype=torch.float64)


def test_bits_are_those_of_unsigned_arithmetic():
    gamma, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

    def mixed(state):
        state = (state ^ (state >> 30)) * first % 2**64
        state = (state ^ (state >> 27)) * second % 2**64
        return state ^ (state >> 31)

    for key, found in zip(KEYS.tolist(), keyed_bits(KEYS, 5), strict=True):
        start = mixed(int(key * 2**53) * gamma % 2**64)
        expected = [mixed((start + n * gamma) % 2**64) for n in range(1, 6)]
        assert [value % 2**64 for value in found.tolist()] == expected


def test_a_key_gives_the_same_in_any_company_and_more_of_it():
    together = keyed_normals(KEYS, 50)
    assert torch.equal(keyed_normals(KEYS[2:3], 20)[0], together[2, :20])
    assert len(together.unique()) > 190


def test_uniforms_and_normals_are_so():
    uniforms = keyed_uniforms(KEYS, 20_000)
    assert 0 <= uniforms.min() < 1e-3
    assert 1 - 1e-3 < uniforms.max() < 1
    assert (uniforms.mean(1) - 0.5).abs().max() < 0.01  # of 0.002
    normals = keyed_normals(KEYS, 20_000).double()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert (normals**power).mean().item() == pytest.approx(moment, abs=0.06)
    below = torch.special.ndtr(normals).sort(1).values  # uniform, if they are normal
    assert (below - torch.linspace(0, 1, 20_000)).abs().max() < 0.02  # 1.4 / sqrt(20,000) is 0.01
    assert np.abs(np.corrcoef(normals.numpy()) - np.eye(4)).max() < 0.03
