"""A training that is given no more memory costs its own cell of a comparison, no other."""

import dataclasses
import resource
from pathlib import Path

import here
import pytest
import shared_training
import torch

from raykb.runtime.storage import LocalStorage
from raykb.runtime.work import TrainJob

HUNGER = 2**33  # bytes, of which none is touched


@pytest.fixture
def limited():
    """What allows this process little more address space than it has; all of it at the end."""
    before = resource.getrlimit(resource.RLIMIT_AS)

    def limit():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        more = pages * resource.getpagesize() + HUNGER // 2
        resource.setrlimit(resource.RLIMIT_AS, (more, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_AS, before)


def build(worker, *, limit):
    """A tiny training; one with a limit wants more than that at step 10."""
    training = shared_training.build(worker)

    def batches(start):
        for step, batch in enumerate(training.batches(start), start):
            if limit and step == 10:
                limit()
                torch.empty(HUNGER, dtype=torch.uint8)
            yield batch

    return dataclasses.replace(training, batches=batches)


def test_a_training_without_memory_leaves_a_hole_and_the_others_end(tmp_path, limited):
    failures, limits = [], {"hungry": limited, "modest": None}
    jobs = [TrainJob(name, build, {"limit": limit}, 0) for name, limit in limits.items()]
    hungry, modest = here.train(
        jobs,
        storage=LocalStorage(tmp_path),
        parallel=1,
        on_letter=lambda letter: None,
        on_result=lambda result: None,
        on_failure=lambda *failure: failures.append(failure),
    )
    ((failed, error),) = failures
    assert (failed.name, hungry) == ("hungry", None)
    assert "allocate memory" in str(error)
    assert modest.steps == shared_training.STEPS
    assert (tmp_path / "hungry" / "step-00000008" / "manifest.json").exists()
