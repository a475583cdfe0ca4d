"""A training shared by several workers: a Ray Train job, begun again when processes die."""

import time
from typing import Any

import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from raykb.engine.loop import Worker
from raykb.runtime.resources import WorkerResources
from raykb.runtime.storage import open_storage
from raykb.runtime.work import TrainJob, run


def run_group(
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
            open_storage(uri).remove(f"{job.name}/ray")
            return
        except WorkerGroupError as error:
            bugs = [e for e in error.worker_failures.values() if not _is_death(e)]
            if bugs or attempt == retries:
                raise (bugs or [error])[0] from error


def _is_death(error: Exception) -> bool:
    """Return whether a worker's failure is a lost process, node or peer rather than a bug.

    Ray's own errors say that a process or node is gone; what a peer of it sees is gloo's or
    NCCL's complaint. All else was raised by the training.
    """
    if type(error).__module__.startswith("ray.") or isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def _run_member(config: dict[str, Any]) -> None:
    resources: WorkerResources = config["resources"]
    context = ray.train.get_context()
    worker = Worker(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    )
    run(
        config["job"],
        config["uri"],
        worker,
        resources,
        config["mailbox"],
        saved=lambda step: ray.train.report({"step": step}),
    )
