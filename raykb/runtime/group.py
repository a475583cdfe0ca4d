"""A training shared by several workers: a Ray Train job, begun again when processes die."""

import os
import time
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayError
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from raykb.engine.loop import Worker
from raykb.runtime.faults import is_loss
from raykb.runtime.mailbox import may_go_on
from raykb.runtime.network import NodeTorchConfig
from raykb.runtime.resources import Group, ResourceError, WorkerResources, cluster, describe, fit
from raykb.runtime.storage import open_storage
from raykb.runtime.watch import Limits
from raykb.runtime.work import TrainJob, run_watched

_FEWER_WAIT_S = 2.0
_LOOK_S = "0.5"  # between looks at the workers; Ray's 2 s are lost at each start and end


def run_group(job: TrainJob, uri: str, mailbox: Any, retries: int, limits: Limits) -> None:
    """Run a Ray Train job; take it up again when processes or nodes died, never after a bug.

    Raises:
        ResourceError: there is no place for its workers.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _LOOK_S)
    for attempt in range(retries + 1):
        workers = places(job.name, job.resources, job.group)
        try:
            _trainer(job, uri, mailbox, workers, limits).fit()
            open_storage(uri).remove(f"{job.name}/ray")
            return
        except (TrainingFailedError, RayError) as error:
            bugs = [cause for cause in _failures(error) if not is_loss(cause)]
            # Ray may see no more than the first consequence of a bug; the mailbox knows the bug
            if bugs or attempt == retries or not may_go_on(mailbox, job.name):
                raise (bugs or [error])[0] from error


def places(name: str, resources: WorkerResources, group: Group) -> int:
    """Wait until a training's workers can be placed; return how many.

    Full size is waited for ``group.wait_s`` seconds, then the fewer that it can go on with are
    tried. Places that are there but taken, by other trainings, are waited for.

    Raises:
        ResourceError: the nodes that are left have not even places for the smallest size.
    """
    sizes = [resources.workers, *sorted(group.fewer, reverse=True)]
    while True:
        for size in sizes:
            wait_s = group.wait_s if size == resources.workers else _FEWER_WAIT_S
            if _can_place(size, resources, group, wait_s):
                return size
        nodes = cluster()
        if not fit(sizes[-1], resources, nodes):
            raise ResourceError(
                f"{name}: needs {sizes[-1]} workers of {resources.cpus:g} CPU and "
                f"{resources.gpus:g} GPU, and after {group.wait_s:g} s there is {describe(nodes)}; "
                "go on with --resume when the nodes are back, or let it go on with fewer workers"
            )


def _can_place(count: int, resources: WorkerResources, group: Group, wait_s: float) -> bool:
    """Return whether Ray finds places for ``count`` workers within ``wait_s`` seconds."""
    reserved = ray.util.placement_group([_each(resources)] * count, strategy=group.place.upper())
    try:
        return bool(reserved.wait(wait_s))
    finally:
        ray.util.remove_placement_group(reserved)


def _each(resources: WorkerResources) -> dict[str, float]:
    gpus = {"GPU": resources.gpus} if resources.gpus else {}
    return {"CPU": float(resources.cpus)} | gpus


def _trainer(job: TrainJob, uri: str, mailbox: Any, workers: int, limits: Limits) -> TorchTrainer:
    """Return the Ray Train job of one attempt; it does not try again by itself."""
    return TorchTrainer(
        _run_member,
        train_loop_config={"job": job, "uri": uri, "mailbox": mailbox, "limits": limits},
        torch_config=NodeTorchConfig(timeout_s=job.group.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.resources.gpus > 0,
            resources_per_worker=_each(job.resources),
            placement_strategy=job.group.place.upper(),
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=open_storage(uri).below(f"{job.name}/ray").place,  # before a ?query
            failure_config=FailureConfig(
                max_failures=0,
                controller_failure_limit=0,  # type: ignore[call-arg]  # of Train v2
            ),
        ),
    )


def _failures(error: Exception) -> list[Exception]:
    """Return what made an attempt fail."""
    if isinstance(error, WorkerGroupError):
        return list(error.worker_failures.values())
    return [error.controller_failure] if isinstance(error, ControllerError) else [error]


def _run_member(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    worker = Worker(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    )
    run_watched(
        config["job"],
        config["uri"],
        worker,
        config["mailbox"],
        config["limits"],
        saved=lambda step: ray.train.report({"step": step}),
    )
