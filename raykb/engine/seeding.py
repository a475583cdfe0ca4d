"""Random numbers by name: one seed, and from it a stream for every purpose.

A stream is named by what it is for, as in ``stream_seed(seed, "augment", epoch)``. Numbers that
belong to one sample are *keyed*: they are a function of (stream, sample id) alone, so neither the
batch, the worker nor the device that asks for them can change what a sample is given.

The keyed numbers are made as SplitMix64 makes them (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014): a counter times an odd constant, finished by a
64-bit mixing function.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def stream_seed(seed: int, *names: int | str) -> int:
    """Return the 63-bit seed of the stream that ``names`` names under ``seed``."""
    text = "/".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: int | str) -> torch.Generator:
    """Return a CPU generator at the start of the stream that ``names`` names under ``seed``."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed


def keyed_uniform(stream: int, ids: np.ndarray | Tensor, count: int) -> Tensor:
    """Return ``count`` uniform numbers for each sample, a function of (stream, id) alone.

    Args:
        stream: a seed from :func:`stream_seed`.
        ids: (N,) integer sample ids.
        count: numbers per sample.

    Returns:
        (N, count) float64 in [0, 1), on the CPU.
    """
    keys = np.asarray(ids).astype(np.uint64)
    with np.errstate(over="ignore"):
        start = _mix(_mix(keys * _GAMMA) ^ np.uint64(stream))  # (N,)
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA  # (count,)
        bits = _mix(start[:, None] + steps)  # (N, count)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """Return the state of the global generators as plain values, safe for ``weights_only``."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the global generators back to where :func:`rng_state` found them."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def apart(seed: int) -> Iterator[None]:
    """Draw from a stream of its own, and leave torch's generator of the CPU as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
