"""A pipeline in Ray's workers: what a stage raises, and what becomes of it when a stage dies."""

import functools
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from torch import nn

from raykb.engine.faults import notes
from raykb.engine.objective import CrossEntropy, Task
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import generator
from raykb.gpipe.costs import measure
from raykb.runtime.resources import WorkerResources
from raykb.runtime.stage_training import Source, stage_training
from raykb.runtime.stages import PipelineSettings, layers_of
from raykb.runtime.storage import LocalStorage
from raykb.runtime.train import train
from raykb.runtime.work import TrainJob

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray Train's own

STEPS, MICRO_BATCHES = 12, 4


class Faulty(nn.Module):
    """The identity; in the third micro-batch of the seventh step it does what it is told."""

    def __init__(self, fault, marks):
        super().__init__()
        self.fault, self.marks, self.calls = fault, marks, 0

    def forward(self, x):
        if x.is_meta or not self.training or not self.fault:
            return x
        self.calls += 1
        if self.calls == 6 * MICRO_BATCHES + 3:
            mark = Path(self.marks, "done")
            if self.fault == "kill" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "bug":
                Path(self.marks, f"raised-{time.time()}").touch()
                raise ArithmeticError("the seventh step")
        return x


def network(fault, marks):
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(12, 12), Faulty(fault, marks), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip


class Numbers:
    """Random numbers to classify; each step's are a function of its number."""

    def __init__(self, device):
        self.device = device

    def batch(self, *names):
        stream = generator(0, *names)
        inputs = torch.randn(12, 6, generator=stream)
        return inputs, inputs[:, :3].argmax(1)

    def training(self, start, share, shares):
        for step in range(start, STEPS):
            yield *(part[share::shares] for part in self.batch("step", step)), 12

    def testing(self, share, shares):
        yield *(part[share::shares] for part in self.batch("test")), 12


def run(folder, *, fault=None, optimizer="sgd", settings=None):
    settings = settings or PipelineSettings(
        micro_batches=MICRO_BATCHES, balance=[4, 4], checkpoint="never"
    )
    model = functools.partial(network, fault, str(folder))
    sample = torch.zeros(3, 6, device="meta")
    recipe = Recipe(steps=STEPS, batch_size=12, save_every=4, log_every=1)
    job = TrainJob(
        "pipe",
        stage_training,
        {
            "network": model,
            "objective": CrossEntropy(Task(nn.Identity(), STEPS)),
            "source": Source(Numbers, {}),
            "lengths": recipe.lengths(12),
            "recipe": recipe,
            "settings": settings,
            "costs": measure(layers_of(model, 0), sample, seed=0, timeout=0.0),
            "optimizer": {"name": optimizer, "lr": 0.05}
            | ({"weight_decay": 0.01} if optimizer == "adamw" else {}),
            "schedule": {"name": "cosine"},
            "seed": 0,
            "uri": str(folder),
        },
        0,
        WorkerResources(workers=settings.workers),
        group=settings.group,
    )
    letters = []
    (result,) = train(
        [job],
        storage=LocalStorage(Path(folder)),
        parallel=1,
        on_letter=letters.append,
        on_result=lambda result: None,
    )
    return result, letters


def losses(letters):
    name = "train/loss"
    return {letter.step: letter.figures[name] for letter in letters if name in letter.figures}


@pytest.mark.slow
def test_what_a_layer_raises_reaches_the_driver_with_its_place(local_ray, tmp_path):
    with pytest.raises(ArithmeticError, match=r"^the seventh step") as caught:
        run(tmp_path, fault="bug")
    assert len(list(tmp_path.glob("raised-*"))) == 1  # a bug is not tried again
    assert "stage 1, micro-batch 2, forward" in notes(caught.value)


@pytest.mark.slow
def test_a_killed_stage_costs_time_and_nothing_else(local_ray, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, letters = run(tmp_path / "whole", optimizer="adamw")
    killed, again = run(tmp_path / "killed", fault="kill", optimizer="adamw")
    assert (tmp_path / "killed" / "done").exists()
    for name, value in whole.state().items():
        assert torch.equal(killed.state()[name], value), name
    assert killed.metrics["test/loss"] == whole.metrics["test/loss"]
    assert losses(again) == losses(letters)
    assert sorted(losses(letters)) == list(range(1, STEPS + 1))
