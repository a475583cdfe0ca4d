"""Trainings on Ray: one worker is a task around ``fit``, several are a Ray Train job.

Both run :mod:`raykb.runtime.work` in each worker. A training whose result is there is not run
again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from raykb.engine import checkpoint
from raykb.engine.foreign import parsed
from raykb.later import Later
from raykb.runtime.faults import is_loss, original
from raykb.runtime.mailbox import Letter, closed, on_this_host, open_mailbox, taken
from raykb.runtime.resources import ResourceError, WorkerResources
from raykb.runtime.run_files import FINAL
from raykb.runtime.signals import is_interrupt
from raykb.runtime.storage import Storage
from raykb.runtime.watch import Limits, hung, watched
from raykb.runtime.work import DETAILS, TrainJob, record_of, run_alone

group = Later("raykb.runtime.group")
_GRACE_S = 10.0
_T = TypeVar("_T")


@dataclass
class Result:
    """What a finished training left.

    Attributes:
        name: the job's.
        metrics: what its evaluation found, ``{"test/top1": 0.9}``.
        steps: optimizer steps.
        seconds: from the build to the result, over all attempts of this process.
        storage: the training's folder.
        cost: of its first worker, as :class:`raykb.runtime.meter.Meter` counts it, in the attempt
            that came to the end; nothing of trainings that an older version left.
    """

    name: str
    metrics: dict[str, float]
    steps: int
    seconds: float
    storage: Storage = field(repr=False, compare=False)
    cost: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    def details(self) -> dict[str, Any]:
        """Return what its evaluation found beyond figures; nothing if there was no such thing."""
        found: dict[str, Any] = (
            parsed(self.storage.read(DETAILS)) if self.storage.exists(DETAILS) else {}
        )
        return found

    def state(self) -> dict[str, Any]:
        """Return the trained model's state dict, on the CPU.

        Raises:
            FileNotFoundError: the model is in shares and too large to be put together unasked.
        """
        try:
            state: dict[str, Any] = checkpoint.decode(self.storage.read(FINAL))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.storage.place}/{FINAL}: is not written for a model as large as this; make "
                f"it by python pipelines/export_checkpoint.py {self.storage.place} --out model.pt"
            ) from error
        return state


def share(value: Any) -> Any:
    """Put a large value into Ray's object store once; workers of a host share its memory."""
    return ray.put(value)


def call(function: Callable[..., _T], *arguments: Any, resources: WorkerResources) -> _T:
    """Return what a function returns that runs once, on a worker; what it raises is raised.

    It has no steps, so only a process that is stopped is taken for hung; it is begun anew then.
    """
    task = ray.remote(_called).options(num_cpus=resources.cpus, num_gpus=resources.gpus)
    found: _T = _got(task.remote(function, *arguments))
    return found


def _called(function: Callable[..., _T], *arguments: Any) -> _T:
    with watched(Limits(), None, "a call"):
        return function(*arguments)


def warm(function: Callable[..., Any], count: int, resources: WorkerResources) -> None:
    """Have ``count`` worker processes import what ``function`` needs, and do not wait for them."""
    if resources.gpus or resources.workers > 1:
        return  # such processes are not used again
    task = ray.remote(_import).options(num_cpus=resources.cpus)
    for _ in range(count):
        task.remote(function, run_alone)


def _import(*functions: Callable[..., Any]) -> None:
    """Do nothing: to be called, a worker has imported the modules of its arguments."""


def finished(storage: Storage, name: str, until: int | None = None) -> Result | None:
    """Return the result of the training ``name`` below ``storage`` if it has one.

    Of one that was to halt after ``until`` steps it is the result so far.
    """
    folder, file = storage.below(name), record_of(until)
    if not folder.exists(file):
        return None
    record = parsed(folder.read(file))
    told = record["metrics"], record["steps"], record["seconds"]
    return Result(name, *told, folder, record.get("cost", {}))


def train(
    jobs: Sequence[TrainJob],
    *,
    storage: Storage,
    parallel: int | Callable[[], int],
    on_letter: Callable[[Letter], None],
    on_result: Callable[[Result], None],
    on_failure: Callable[[TrainJob, BaseException], None] | None = None,
    retries: int = 3,
    limits: Limits | None = None,
) -> list[Result | None]:
    """Run ``jobs``, at most ``parallel`` at once; return their results in order.

    Args:
        jobs: the trainings; those with a result in ``storage`` are not run again.
        storage: the run directory; each job has the folder of its name.
        parallel: trainings side by side, as the plan allows; it is asked anew all the while.
        on_letter: gets what the workers log, in the driver.
        on_result: gets each result as it comes, those found in ``storage`` too.
        on_failure: gets each training that fails, whose result is None then; the others go on.
            Without it, what a training raises ends all of them and is raised here.
        retries: how often a training is taken up again after its process or node died. An
            exception that a training raises is a bug: it is told as the worker met it, and the
            training is not taken up again.
        limits: when a worker is taken for hung; it is ended then, as if its process had died.

    Raises:
        Hung: a training hung as often as it may be taken up again.
    """
    began, limits = time.time(), limits or Limits()
    results: dict[str, Result | None] = {
        job.name: done for job in jobs if (done := finished(storage, job.name, job.until))
    }
    for done in results.values():
        if done is not None:
            on_result(done)
    waiting = [job for job in jobs if job.name not in results]
    if not waiting:
        return [results[job.name] for job in jobs]
    mailbox, allowed = open_mailbox(), parallel if callable(parallel) else lambda: parallel
    running: dict[Any, TrainJob] = {}
    bugs: dict[str, BaseException] = {}
    try:
        while waiting or running:
            places = allowed()
            while waiting and len(running) < places:
                job = waiting.pop(0)
                running[_launch(job, storage.uri, mailbox, retries, limits)] = job
            ready, _ = ray.wait(list(running), timeout=0.5)
            _deliver(mailbox, on_letter, bugs if on_failure else None)
            for reference in ready:
                job = running.pop(reference)
                try:
                    results[job.name] = _result(reference, storage, job, began)
                except Exception as error:
                    of_the_run = isinstance(error, ResourceError) or is_interrupt(error)
                    if on_failure is None or of_the_run:
                        raise
                    _deliver(mailbox, on_letter, bugs)
                    results[job.name] = None
                    on_failure(job, bugs.get(job.name, error))
                else:
                    on_result(results[job.name])  # type: ignore[arg-type]
        _deliver(mailbox, on_letter, bugs if on_failure else None)
    except Exception as error:
        if not is_interrupt(error):  # who is told to stop is not given the time
            closed(mailbox)
            _end(list(running))
        raise
    finally:
        for reference in _unfinished(list(running)):
            ray.cancel(reference, force=True)
        ray.kill(mailbox)
    return [results[job.name] for job in jobs]


def _result(reference: Any, storage: Storage, job: TrainJob, began: float) -> Result:
    """Return what a training that has ended left; what it raised is raised as it was."""
    try:
        _got(reference)
    except Exception as error:
        if is_loss(error) and (told := hung(storage, job.name, began)):
            raise told from error
        raise
    result = finished(storage, job.name, job.until)
    if result is None:
        raise FileNotFoundError(f"{storage.place}/{job.name}/{record_of(job.until)}: not written")
    return result


def _got(reference: Any) -> Any:
    """Return what a task returned; what it raised is raised as it was."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error


def _deliver(
    mailbox: Any, on_letter: Callable[[Letter], None], bugs: dict[str, BaseException] | None
) -> None:
    """Hand letters on; keep the first bug of each training, or raise the first of all."""
    for letter in taken(mailbox):
        if isinstance(letter, Letter):
            on_letter(letter)
        elif not letter.lost:
            if bugs is None:
                raise original(letter)
            bugs.setdefault(letter.name, original(letter))


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


def _launch(job: TrainJob, uri: str, mailbox: Any, retries: int, limits: Limits) -> Any:
    """Start a training: a task, or a Ray Train job in a task of its own beside others."""
    if job.resources.workers > 1:
        task = ray.remote(group.run_group).options(
            name=job.name, num_cpus=0, max_retries=0, scheduling_strategy=on_this_host()
        )
        return task.remote(job, uri, mailbox, retries, limits)
    task = ray.remote(run_alone).options(
        name=job.name,
        num_cpus=job.resources.cpus,
        num_gpus=job.resources.gpus,
        max_retries=retries,
        retry_exceptions=False,
    )
    return task.remote(job, uri, mailbox, limits)
