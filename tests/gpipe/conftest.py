"""What this folder's tests share, also where they run by themselves, without Ray."""

import sys
import types
from pathlib import Path

import pytest

from raykb.gpipe import profile

sys.path.insert(0, str(Path(__file__).parents[1]))

from gloo_pool import gloo

__all__ = ["gloo"]


@pytest.fixture
def spend(monkeypatch):
    """A function that spends seconds on the clock of profiles, which nothing else moves on."""
    now = 0.0

    def spend(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(profile, "time", types.SimpleNamespace(perf_counter=lambda: now))
    return spend
