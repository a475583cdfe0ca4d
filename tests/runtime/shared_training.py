"""A tiny training in shares, and a driver around it for tests that need a process of their own.

Each layer learns by itself, so any number of workers must come to the same weights.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import ray
import torch
import torch.distributed as dist
from torch import nn

from raykb.engine.faults import add_note
from raykb.engine.loop import Evaluated, Shard, Training
from raykb.engine.optim import NamedOptimizer, cosine, scheduled, sgd, updater
from raykb.engine.seeding import generator
from raykb.runtime.resources import Group, WorkerResources
from raykb.runtime.storage import LocalStorage
from raykb.runtime.train import train
from raykb.runtime.work import TrainJob

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

STEPS, LAYERS = 24, 4

LIMIT_S = 500
"""Guards a test of a process of its own against a hang; no claim about what it takes."""


class Unpicklable(Exception):
    """Its ``__init__`` does not take what Python pickles of it."""

    def __init__(self, number, *, why):
        super().__init__(f"number {number} {why}")


def layer(number):
    made = nn.Linear(3, 3)
    with torch.no_grad():
        made.weight.copy_(torch.randn(3, 3, generator=generator(0, "layer", number)))
        made.bias.zero_()
    return made


def fail(fault, marks):
    """Do the fault that is asked for."""
    if fault == "kill" and not Path(marks, "killed").exists():
        Path(marks, "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang" and not Path(marks, "hung").exists():  # so that no step is made meanwhile
        Path(marks, "hung").touch()
        time.sleep(LIMIT_S)
    if fault in ("stop", "loop") and not Path(marks, fault).exists():
        Path(marks, fault).touch()
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        loop_for_ever(fault)
    if fault == "wait":
        Path(marks, "waits").touch()
        while not Path(marks, "go").exists():
            time.sleep(0.1)
    if fault == "bug":
        Path(marks, f"raised-{time.time()}").touch()
        error = ArithmeticError("a bug in step 13")
        add_note(error, "stage 1, micro-batch 3, forward")
        try:
            raise error
        except ArithmeticError as cause:
            raise RuntimeError("failed to run forward") from cause  # as torch's stages do
    if fault == "unpicklable":
        raise Unpicklable(13, why="for a test")


def loop_for_ever(fault):
    while fault == "loop":
        pass


def build(worker, *, steps=STEPS, fault=None, marks=None, replicas=1):
    """The layers of this worker's stage; each is trained towards the square of its input."""
    stages = worker.size // replicas
    replica, stage = divmod(worker.rank, stages)
    own = range(stage * LAYERS // stages, (stage + 1) * LAYERS // stages)
    model = nn.ModuleDict({str(number): layer(number) for number in own})
    optimizer = sgd(model, lr=0.05)
    scheduler = scheduled(optimizer, cosine(), steps=steps)

    def batches(start):
        for step in range(start, steps):
            if marks:
                Path(marks, f"{worker.rank}-of-{worker.size}-{step}-{os.getpid()}").touch()
            if step == 13 and worker.rank == worker.size - 1:
                fail(fault, marks)
            yield torch.randn(8, 3, generator=generator(0, "step", step))

    def summed(value):
        """Return the sum over the stages."""
        value = value.detach().clone()
        if worker.size > 1:
            dist.all_reduce(value)
        return value / replicas

    def step(batch, number):
        losses = [(part(batch) - batch.square()).square().mean() for part in model.values()]
        loss = torch.stack(losses).sum()
        loss.backward()
        return {"loss": summed(loss)}

    def evaluate(split):
        weights = [part.weight.double().sum() for part in model.values()]
        return Evaluated({f"{split}/weight": float(summed(torch.stack(weights).sum()))})

    return Training(
        step=step,
        update=updater(model.parameters(), optimizer, scheduler),
        batches=batches,
        steps=steps,
        parts={
            "model": model,
            "optimizer": NamedOptimizer(optimizer, model.named_parameters()),
            "scheduler": scheduler,
        },
        evaluate=evaluate,
        shard=Shard(saved=replica == 0),
        save_every=4,
        log_every=6,
    )


def job(name="tiny", *, workers, group=None, **arguments):
    each = WorkerResources(workers=workers)
    return TrainJob(name, build, arguments, 0, each, group=group or Group())


def run(folder, *, workers, group=None, letters=None, retries=3, limits=None, **arguments):
    (result,) = train(
        [job(workers=workers, group=group, **arguments)],
        storage=LocalStorage(Path(folder)),
        parallel=1,
        on_letter=(letters if letters is not None else []).append,
        on_result=lambda result: None,
        retries=retries,
        limits=limits,
    )
    return result


def main():
    """Train on the cluster of ``--address`` and print the metrics and the workers of each start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--address", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--group", type=json.loads, default={})
    parser.add_argument("--arguments", type=json.loads, default={})
    given = parser.parse_args()
    ray.init(given.address, log_to_driver=False)
    letters = []
    group = Group(**given.group | {"fewer": tuple(given.group.get("fewer", ()))})
    result = run(
        given.folder,
        workers=given.workers,
        group=group,
        letters=letters,
        **given.arguments,
    )
    starts = [e.figures["cluster/workers"] for e in letters if "cluster/workers" in e.figures]
    print(json.dumps({"metrics": result.metrics, "workers": starts}))


if __name__ == "__main__":
    main()
