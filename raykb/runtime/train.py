"""Trainings on Ray: one worker is a task around ``fit``, several are a Ray Train job.

Both do the same: build the training, restore the newest checkpoint that verifies, ``fit``, and
leave ``final.pt`` (a plain state dict) and ``result.json`` in the training's folder. A training
whose result is there is not run again.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from raykb.engine import checkpoint
from raykb.engine.loop import Training, Worker, fit
from raykb.engine.seeding import seed_everything, stream_seed
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
    """

    name: str
    build: Callable[..., Training]
    arguments: dict[str, Any]
    seed: int
    save_every: int = 0
    log_every: int = 50


@dataclass
class Result:
    """What a finished training left.

    Attributes:
        name: the job's.
        metrics: what its ``evaluate`` returned.
        steps: optimizer steps.
        seconds: from the build to the result, over all attempts of this process.
        storage: the training's folder.
    """

    name: str
    metrics: dict[str, float]
    steps: int
    seconds: float
    storage: Storage = field(repr=False)

    def state(self) -> dict[str, Any]:
        """Return the trained model's state dict, on the CPU."""
        state: dict[str, Any] = checkpoint.decode(self.storage.read(FINAL))
        return state


class Letter(NamedTuple):
    """What a worker says of its training after some steps.

    Attributes:
        name: the job's.
        step: optimizer steps done.
        steps: of the whole training.
        figures: means since the last letter.
    """

    name: str
    step: int
    steps: int
    figures: dict[str, float]


@ray.remote(num_cpus=0)
class _Mailbox:
    """Takes what workers have to say, until the driver asks; only the driver talks to MLflow."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []

    def put(self, letter: "Letter") -> None:
        self._letters.append(letter)

    def take(self) -> "list[Letter]":
        letters, self._letters = self._letters, []
        return letters


def share(value: Any) -> Any:
    """Put a large value into Ray's object store once; workers of a host share its memory."""
    return ray.put(value)


def finished(storage: Storage, name: str) -> Result | None:
    """Return the result of the training ``name`` below ``storage`` if it has one."""
    folder = storage.below(name)
    if not folder.exists(RESULT):
        return None
    record = json.loads(folder.read(RESULT))
    return Result(name, record["metrics"], record["steps"], record["seconds"], folder)


def train(
    jobs: Sequence[TrainJob],
    *,
    storage: Storage,
    resources: WorkerResources,
    parallel: int,
    on_letter: Callable[[Letter], None],
    on_result: Callable[[Result], None],
    retries: int = 3,
) -> list[Result]:
    """Run ``jobs``, at most ``parallel`` at once; return their results in order.

    Args:
        jobs: the trainings; those with a result in ``storage`` are not run again.
        storage: the run directory; each job has the folder of its name.
        resources: what one worker of one training takes.
        parallel: trainings side by side, as the plan allows.
        on_letter: gets what the workers log, in the driver.
        on_result: gets each result as it comes, those found in ``storage`` too.
        retries: how often a training is taken up again after its process or node died. An
            exception that a training raises is a bug: it is raised here and not retried.
    """
    results = {job.name: done for job in jobs if (done := finished(storage, job.name))}
    for done in results.values():
        on_result(done)
    waiting = [job for job in jobs if job.name not in results]
    if not waiting:
        return [results[job.name] for job in jobs]
    mailbox = _Mailbox.remote()  # type: ignore[attr-defined]
    launch = _launch_task if resources.workers == 1 else _launch_group
    running: dict[Any, TrainJob] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                running[launch(job, storage.uri, resources, mailbox, retries)] = job
            ready, _ = ray.wait(list(running), timeout=0.5)
            for letter in ray.get(mailbox.take.remote()):
                on_letter(letter)
            for reference in ready:
                job = running.pop(reference)
                ray.get(reference)
                result = finished(storage, job.name)
                if result is None:
                    raise FileNotFoundError(f"{storage.uri}/{job.name}/{RESULT}: not written")
                results[job.name] = result
                on_result(result)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        ray.kill(mailbox)
    return [results[job.name] for job in jobs]


def _launch_task(
    job: TrainJob, uri: str, resources: WorkerResources, mailbox: Any, retries: int
) -> Any:
    task = ray.remote(_run_alone).options(
        name=job.name,
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        max_retries=retries,
        retry_exceptions=False,
    )
    return task.remote(job, uri, resources, mailbox)


def _run_alone(job: TrainJob, uri: str, resources: WorkerResources, mailbox: Any) -> None:
    torch.set_num_threads(resources.cpus)
    _run(job, uri, Worker(0, 1, torch.device(resources.device)), mailbox)


def _launch_group(
    job: TrainJob, uri: str, resources: WorkerResources, mailbox: Any, retries: int
) -> Any:
    """Run a Ray Train job in a task of its own, so that several can run side by side."""
    task = ray.remote(_run_group).options(name=job.name, num_cpus=0, max_retries=0)
    return task.remote(job, uri, resources, mailbox, retries)


def _run_group(
    job: TrainJob, uri: str, resources: WorkerResources, mailbox: Any, retries: int
) -> None:
    """Run a Ray Train job; take it up again when processes or nodes died, never after a bug."""
    for attempt in range(retries + 1):
        trainer = TorchTrainer(
            _run_member,
            train_loop_config={"job": job, "uri": uri, "resources": resources, "mailbox": mailbox},
            torch_config=TorchConfig(timeout_s=300),
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker={"CPU": resources.cpus}
                | ({"GPU": resources.gpus} if resources.gpus else {}),
            ),
            run_config=RunConfig(
                name=f"attempt-{time.time_ns()}",
                storage_path=f"{uri}/{job.name}/ray",
                failure_config=FailureConfig(
                    max_failures=0,
                    controller_failure_limit=10,  # type: ignore[call-arg]  # of Train v2
                ),
            ),
        )
        try:
            trainer.fit()
            return
        except WorkerGroupError as error:
            bugs = [e for e in error.worker_failures.values() if not _is_death(e)]
            if bugs or attempt == retries:
                raise (bugs or [error])[0] from error


def _is_death(error: Exception) -> bool:
    """Return whether a worker's failure is a lost process, node or peer rather than a bug."""
    return isinstance(error, (RayActorError, dist.DistBackendError, dist.DistNetworkError)) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


def _run_member(config: dict[str, Any]) -> None:
    resources: WorkerResources = config["resources"]
    context = ray.train.get_context()
    torch.set_num_threads(resources.cpus)
    worker = Worker(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    )
    _run(config["job"], config["uri"], worker, config["mailbox"])


def _run(job: TrainJob, uri: str, worker: Worker, mailbox: Any) -> None:
    """Build, restore, fit, evaluate, and write the result: what every worker does."""
    began = time.perf_counter()
    folder = open_storage(uri).below(job.name)
    seed_everything(stream_seed(job.seed, job.name))
    arguments = {
        name: ray.get(value) if isinstance(value, ray.ObjectRef) else value
        for name, value in job.arguments.items()
    }
    training = job.build(worker, **arguments)
    start = _restore(folder, training, worker)

    def log(step: int, figures: dict[str, float]) -> None:
        if worker.rank == 0:
            mailbox.put.remote(Letter(job.name, step, training.steps, figures))

    fit(
        training,
        start=start,
        log=log,
        log_every=job.log_every,
        save=functools.partial(_save, folder, worker),
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


def _save(folder: Storage, worker: Worker, state: dict[str, Any]) -> None:
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
    if worker.size > 1:
        ray.train.report({"step": step})
