"""What the worker of a training does; it imports no more of Ray than it needs, to start soon.

Build the training, restore the newest checkpoint that verifies, ``fit``, evaluate, and leave
``final.pt`` (a plain state dict) and ``result.json`` in the training's folder.
"""

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
import torch.distributed as dist

from raykb.engine import checkpoint
from raykb.engine.loop import Training, Worker, fit
from raykb.engine.memory import keep_freed_memory
from raykb.engine.seeding import seed_everything, stream_seed
from raykb.runtime.mailbox import Letter
from raykb.runtime.resources import WorkerResources
from raykb.runtime.storage import Storage, open_storage

RESULT = "result.json"
FINAL = "final.pt"


@dataclass(frozen=True)
class TrainJob:
    """One training to be run.

    Attributes:
        name: its folder below the run directory, and its name in the tracker.
        build: ``build(worker, **arguments)`` returns the training; called in each worker.
        arguments: what ``build`` gets; large arrays as references from :func:`share`.
        seed: of the global generators (initial weights, dropout).
        save_every: optimizer steps between two checkpoints; 0 saves none.
        log_every: optimizer steps between two records of the tracker.
        params: what the tracker is told of it besides the configuration.
    """

    name: str
    build: Callable[..., Training]
    arguments: dict[str, Any]
    seed: int
    save_every: int = 0
    log_every: int = 50
    params: dict[str, Any] = field(default_factory=dict)


def run_alone(job: TrainJob, uri: str, resources: WorkerResources, mailbox: Any) -> None:
    """Run a training by itself, as a Ray task does."""
    worker = Worker(device=torch.device(resources.device))
    run(job, uri, worker, resources, mailbox, saved=lambda step: None)


def run(
    job: TrainJob,
    uri: str,
    worker: Worker,
    resources: WorkerResources,
    mailbox: Any,
    *,
    saved: Callable[[int], None],
) -> None:
    """Build, restore, fit, evaluate, and write the result: what every worker does.

    Args:
        job: what to train.
        uri: of the run directory.
        worker: this one.
        resources: what it has.
        mailbox: an actor that takes a :class:`Letter`.
        saved: is called by every worker when a checkpoint is committed, once per save.
    """
    began = time.perf_counter()
    torch.set_num_threads(resources.cpus)
    keep_freed_memory()
    folder = open_storage(uri).below(job.name)
    seed_everything(job.seed)
    arguments = {
        name: ray.get(value) if isinstance(value, ray.ObjectRef) else value
        for name, value in job.arguments.items()
    }
    training = job.build(worker, **arguments)
    if worker.rank > 0:  # the same weights everywhere, but dropout of its own
        seed_everything(stream_seed(job.seed, "rank", worker.rank))
    start = _restore(folder, training, worker)
    ready = time.perf_counter() - began

    def log(step: int, figures: dict[str, float]) -> None:
        if worker.rank == 0:
            mailbox.put.remote(Letter(job.name, step, training.steps, figures))

    log(start, {"time/build_s": ready})  # the training is ready for its first step
    fit(
        training,
        start=start,
        log=log,
        log_every=job.log_every,
        save=functools.partial(_save, folder, worker, saved),
        save_every=job.save_every,
    )
    metrics = training.evaluate()
    if worker.rank == 0:
        folder.write(FINAL, checkpoint.encode(training.parts["model"].state_dict()))
        seconds = time.perf_counter() - began
        record = {"metrics": metrics, "steps": training.steps, "seconds": seconds}
        folder.write(RESULT, json.dumps(record, indent=1).encode())


def _restore(folder: Storage, training: Training, worker: Worker) -> int:
    """Put the newest checkpoint that verifies into ``training``; return its step, or 0.

    Rank 0 decides which one it is. Each worker gets rank 0's state and its own random state.
    """
    parts = checkpoint.newest(folder) if worker.rank == 0 else None
    if worker.size > 1:
        decided = [parts]
        dist.broadcast_object_list(decided, src=0)
        parts = decided[0]
    if parts is None:
        return 0
    state = checkpoint.decode(parts[0])
    if worker.rank < len(parts):
        state["rng"] = checkpoint.decode(parts[worker.rank])["rng"]
    return training.restore(state)


def _save(
    folder: Storage, worker: Worker, saved: Callable[[int], None], state: dict[str, Any]
) -> None:
    """Write a checkpoint: every rank its part, then rank 0 the manifest, then all go on."""
    step = state["step"]
    if worker.rank > 0:
        state = {"step": step, "rng": state["rng"]}
    part = checkpoint.write_part(folder, state, step=step, rank=worker.rank)
    parts: list[Any] = [part]
    if worker.size > 1:
        parts = [None] * worker.size
        dist.all_gather_object(parts, part)
    if worker.rank == 0:
        checkpoint.commit(folder, parts, step=step)
    saved(step)
