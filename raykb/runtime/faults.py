"""What a worker's exception is, and how the driver comes to raise the very same one.

A worker sends its exception to the mailbox before torch, Ray Train or a task can wrap it anew, so
the driver knows it within a second, whatever else breaks in consequence.
"""

import contextlib
import traceback
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import RayTaskError

from raykb.engine.faults import add_note, causes, noted, notes
from raykb.runtime.mailbox import Failure

_SEND_S = 10.0


class WorkerTraceback(Exception):
    """Where in a worker an exception came from; the cause of that exception in the driver."""


class WorkerError(RuntimeError):
    """Stands for a worker's exception that cannot be pickled; the text names its type."""


def is_loss(error: BaseException) -> bool:
    """Return whether an exception says that a process, node or peer was lost; else it is a bug.

    Ray's own errors say that a process or node is gone; what a peer of it sees is gloo's or
    NCCL's complaint. All else was raised by the training.
    """
    if isinstance(error, RayTaskError):  # raised in a task or actor that the worker called
        return isinstance(error.cause, BaseException) and is_loss(error.cause)
    if type(error).__module__.startswith("ray.") or isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def send_failure(mailbox: Any, name: str, rank: int, error: Exception) -> None:
    """Send what is to be known of ``error`` to the mailbox, and wait until it is there."""
    original = noted(error)
    failure = Failure(
        name,
        rank,
        any(is_loss(cause) for cause in causes(error)),
        f"{type(original).__module__}.{type(original).__qualname__}".removeprefix("builtins."),
        str(original),
        notes(original),
        "".join(traceback.format_exception(error)),
        _pickled(original),
    )
    with contextlib.suppress(Exception):  # without mailbox, Ray's way of exceptions is left
        ray.get(mailbox.put.remote(failure), timeout=_SEND_S)


def _pickled(error: BaseException) -> bytes | None:
    """Return ``error`` as bytes that give it back as it is, or None."""
    try:
        data: bytes = ray.cloudpickle.dumps(error)
        again = ray.cloudpickle.loads(data)
    except Exception:
        return None
    same = type(again).__qualname__ == type(error).__qualname__ and str(again) == str(error)
    return data if same else None


def original(failure: Failure) -> BaseException:
    """Return the exception that a worker met, to be raised in the driver.

    It has the worker's type and message, notes that say where, and a :class:`WorkerTraceback` as
    its cause. One that cannot be pickled is a :class:`WorkerError`.
    """
    place = f"training {failure.name!r}, rank {failure.rank}"
    try:
        error: BaseException = ray.cloudpickle.loads(failure.pickled or b"")
    except Exception:
        error = WorkerError(f"{failure.kind}: {failure.message}")
    for note in [*failure.where, place]:
        if note not in notes(error):
            add_note(error, note)
    where = "; ".join([place, *failure.where])
    error.__cause__ = WorkerTraceback(f"{where}\n\n{failure.trace}")
    return error
