"""Trainings on Ray: one worker is a task around ``fit``, several are a Ray Train job.

Both run :mod:`raykb.runtime.work` in each worker. A training whose result is there is not run
again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raykb.engine import checkpoint
from raykb.runtime.faults import original
from raykb.runtime.group import run_group
from raykb.runtime.mailbox import Letter, on_this_host, open_mailbox
from raykb.runtime.resources import WorkerResources
from raykb.runtime.storage import Storage
from raykb.runtime.work import FINAL, RESULT, TrainJob, run_alone

_GRACE_S = 10.0


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
    storage: Storage = field(repr=False, compare=False)

    def state(self) -> dict[str, Any]:
        """Return the trained model's state dict, on the CPU.

        Raises:
            FileNotFoundError: the model is in shares and too large to be put together unasked.
        """
        try:
            state: dict[str, Any] = checkpoint.decode(self.storage.read(FINAL))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.storage.uri}/{FINAL}: is not written for a model as large as this; make "
                f"it by python pipelines/export_checkpoint.py {self.storage.uri} --out model.pt"
            ) from error
        return state


def share(value: Any) -> Any:
    """Put a large value into Ray's object store once; workers of a host share its memory."""
    return ray.put(value)


def warm(function: Callable[..., Any], count: int, resources: WorkerResources) -> None:
    """Have ``count`` worker processes import what ``function`` needs, and do not wait for them."""
    if resources.gpus or resources.workers > 1:
        return  # such processes are not used again
    task = ray.remote(_import).options(num_cpus=resources.cpus)
    for _ in range(count):
        task.remote(function, run_alone)


def _import(*functions: Callable[..., Any]) -> None:
    """Do nothing: to be called, a worker has imported the modules of its arguments."""


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
            exception that a training raises is a bug: it is raised here, as the worker met it,
            and not retried.
    """
    results = {job.name: done for job in jobs if (done := finished(storage, job.name))}
    for done in results.values():
        on_result(done)
    waiting = [job for job in jobs if job.name not in results]
    if not waiting:
        return [results[job.name] for job in jobs]
    mailbox = open_mailbox()
    launch = _launch_task if resources.workers == 1 else _launch_group
    running: dict[Any, TrainJob] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                running[launch(job, storage.uri, resources, mailbox, retries)] = job
            ready, _ = ray.wait(list(running), timeout=0.5)
            _deliver(mailbox, on_letter)
            for reference in ready:
                job = running.pop(reference)
                _get(reference)
                result = finished(storage, job.name)
                if result is None:
                    raise FileNotFoundError(f"{storage.uri}/{job.name}/{RESULT}: not written")
                results[job.name] = result
                on_result(result)
        _deliver(mailbox, on_letter)
    except Exception:
        ray.get(mailbox.close.remote())
        _end(list(running))
        raise
    finally:
        for reference in _unfinished(list(running)):
            ray.cancel(reference, force=True)
        ray.kill(mailbox)
    return [results[job.name] for job in jobs]


def _deliver(mailbox: Any, on_letter: Callable[[Letter], None]) -> None:
    """Hand letters on; raise the first bug of which a worker tells."""
    for letter in ray.get(mailbox.take.remote()):
        if isinstance(letter, Letter):
            on_letter(letter)
        elif not letter.lost:
            raise original(letter)


def _end(running: list[Any]) -> None:
    """End tasks in peace: the places of a group that is killed are lost until the driver ends."""
    if running:
        _, running = ray.wait(running, timeout=_GRACE_S)  # the one that failed ends by itself
    for reference in running:
        ray.cancel(reference)
    _unfinished(running, timeout_s=_GRACE_S)


def _unfinished(running: list[Any], timeout_s: float = 0.0) -> list[Any]:
    """Return the tasks that do not end in time; to cancel one that just has may abort Ray."""
    if not running:
        return []
    return list(ray.wait(running, num_returns=len(running), timeout=timeout_s)[1])


def _get(reference: Any) -> None:
    """Wait for a task; what it raised is raised as it was, not as what Ray makes of it."""
    try:
        ray.get(reference)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error


def _launch_task(
    job: TrainJob, uri: str, resources: WorkerResources, mailbox: Any, retries: int
) -> Any:
    task = ray.remote(run_alone).options(
        name=job.name,
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        max_retries=retries,
        retry_exceptions=False,
    )
    return task.remote(job, uri, resources, mailbox)


def _launch_group(
    job: TrainJob, uri: str, resources: WorkerResources, mailbox: Any, retries: int
) -> Any:
    """Run a Ray Train job in a task of its own, so that several can run side by side."""
    task = ray.remote(run_group).options(
        name=job.name, num_cpus=0, max_retries=0, scheduling_strategy=on_this_host()
    )
    return task.remote(job, uri, resources, mailbox, retries)
