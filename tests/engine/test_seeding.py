"""Random streams: named, keyed by sample, and restored as they were."""

import io
import random

import numpy as np
import pytest
import torch

from raykb.engine.seeding import (
    apart,
    generator,
    keyed_uniform,
    rng_state,
    seed_everything,
    set_rng_state,
    stream_seed,
)


def test_streams_differ_by_seed_and_by_every_name():
    seeds = [
        stream_seed(seed, *names)
        for seed in (0, 1)
        for names in ((), ("a",), ("a", 0), ("a", 1), ("a", "1"), ("b", 0), (0, "a"))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_is_the_same_in_every_process():
    assert stream_seed(3, "augment", 7) == 6832347893633924711


def test_keyed_numbers_depend_on_the_sample_alone():
    whole = keyed_uniform(5, np.arange(100), 4)
    part = keyed_uniform(5, torch.tensor([99, 3, 42]), 4)
    assert torch.equal(part, whole[[99, 3, 42]])
    assert torch.equal(keyed_uniform(5, np.arange(100), 2), whole[:, :2])


@pytest.mark.parametrize("stream", [0, 1, 2**62 + 12345])
def test_keyed_numbers_are_uniform_and_uncorrelated(stream):
    numbers = keyed_uniform(stream, np.arange(200_000), 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    shares = torch.histc(numbers.float(), 50, 0, 1) / numbers.numel()
    assert (shares - 0.02).abs().max() < 0.001
    neighbours = torch.stack([numbers[:-1, 0], numbers[1:, 0], numbers[:-1, 1], numbers[:-1, 2]])
    off_diagonal = torch.corrcoef(neighbours) - torch.eye(4)
    assert off_diagonal.abs().max() < 0.01


def test_generators_of_one_name_agree():
    first, second = (torch.rand(5, generator=generator(1, "order", 2)) for _ in range(2))
    other = torch.rand(5, generator=generator(1, "order", 3))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_state_of_all_generators_survives_a_safe_file():
    seed_everything(11)
    np.random.randn(3)  # an odd number of normals leaves one cached
    buffer = io.BytesIO()
    torch.save(rng_state(), buffer)
    wanted = (random.random(), np.random.randn(), torch.rand(1).item())
    seed_everything(99)
    buffer.seek(0)
    set_rng_state(torch.load(buffer, weights_only=True))
    assert (random.random(), np.random.randn(), torch.rand(1).item()) == wanted


def test_what_is_drawn_apart_is_a_stream_of_its_own_and_moves_no_other():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    first = torch.rand(1)
    drawn = []
    for seed in (5, 5, 6):
        with apart(seed):
            drawn.append(torch.rand(3))
    with pytest.raises(KeyError), apart(5):
        raise KeyError
    assert torch.equal(torch.cat([first, torch.rand(3)]), wanted)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
