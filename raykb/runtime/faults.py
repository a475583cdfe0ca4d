"""What a worker's exception is, and how the driver comes to raise the very same one.

A worker sends its exception to the mailbox before torch, Ray Train or a task can wrap it anew, so
the driver knows it within a second, whatever else breaks in consequence.
"""

import contextlib
import re
import traceback
from typing import Any

import ray
import torch.distributed as dist
from ray import exceptions
from ray.exceptions import RayTaskError

from raykb.engine.faults import add_note, causes, noted, notes
from raykb.runtime.mailbox import Failure

_SEND_S = 10.0
_LOST = (  # of a process, a node, or of what one of them had
    dist.DistError,
    exceptions.WorkerCrashedError,
    exceptions.RayActorError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,  # Ray ended the process, for the node had no memory left
    exceptions.RpcError,
    exceptions.TaskPlacementGroupRemoved,
    exceptions.ActorPlacementGroupRemoved,
    exceptions.TaskUnschedulableError,
    exceptions.ActorUnschedulableError,
)
_GLOO = re.compile(r"\[\S*/gloo/[\w/]+\.(cc|h):\d+\] ")  # the place in gloo's own source


class WorkerTraceback(Exception):
    """Where in a worker an exception came from; the cause of that exception in the driver."""


class WorkerError(RuntimeError):
    """Stands for a worker's exception that cannot be pickled; the text names its type."""


def is_loss(error: BaseException) -> bool:
    """Return whether an exception says that a process, node or peer was lost; else it is a bug.

    What it was raised from counts, too, and not what its text is about. Gloo's complaint has no
    type of its own: it is a RuntimeError that begins with the place in gloo's source; what its
    checks of arguments find does not.
    """
    return any(map(_is_loss, causes(error)))


def _is_loss(error: BaseException) -> bool:
    if isinstance(error, RayTaskError):  # raised in a task or actor that the worker called
        return isinstance(error.cause, BaseException) and is_loss(error.cause)
    if isinstance(error, _LOST) or type(error).__module__.startswith("ray.train."):
        return True
    return type(error) is RuntimeError and _GLOO.match(str(error)) is not None


def send_failure(mailbox: Any, name: str, rank: int, error: Exception) -> None:
    """Send what is to be known of ``error`` to the mailbox, and wait until it is there."""
    original = noted(error)
    failure = Failure(
        name,
        rank,
        is_loss(error),
        f"{type(original).__module__}.{type(original).__qualname__}".removeprefix("builtins."),
        str(original),
        notes(original),
        "".join(traceback.format_exception(error)),
        _pickled(original),
    )
    with contextlib.suppress(Exception):  # without mailbox, Ray's way of exceptions is left
        ray.get(mailbox.put.remote(failure), timeout=_SEND_S)


def _pickled(error: BaseException) -> bytes | None:
    """Return ``error`` as bytes that give its type and message back, or None.

    What Python's own way does not bring back, as an ``__init__`` of several arguments or a lock
    among the attributes, goes in parts: arguments, or else the message, and what pickles of the
    rest.
    """
    for form in (error, _Parts(error, error.args), _Parts(error, (str(error),))):
        with contextlib.suppress(Exception):
            data: bytes = ray.cloudpickle.dumps(form)
            again = ray.cloudpickle.loads(data)
            if type(again).__qualname__ == type(error).__qualname__ and str(again) == str(error):
                return data
    return None


class _Parts:
    """Stands for an exception in a pickle, from which it comes back without its ``__init__``."""

    def __init__(self, error: BaseException, arguments: tuple[Any, ...]) -> None:
        attributes = {name: value for name, value in vars(error).items() if _can_pickle(value)}
        self._made = (type(error), arguments, attributes)

    def __reduce__(self) -> Any:
        return _from_parts, self._made


def _from_parts(
    kind: type[BaseException], arguments: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    error = kind.__new__(kind, *arguments)
    vars(error).update(attributes)
    return error


def _can_pickle(value: Any) -> bool:
    try:
        ray.cloudpickle.loads(ray.cloudpickle.dumps(value))
    except Exception:
        return False
    return True


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
