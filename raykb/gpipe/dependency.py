"""Edges that order backward passes, and copies that overlap with them.

Autograd runs what is ready in any order. A fork and a join make a tensor without elements, the
phony, an edge from one micro-batch to the next on the same part of the model::

    micro-batch i-1:  inputs -> part -> [fork] -> outputs
                                          | phony
    micro-batch i:    inputs ---------> [join] -> part -> outputs

In backward the fork waits for the join, so micro-batch i-1 begins when micro-batch i is done.

On CUDA devices copies run on streams of their own. Each part has one for what arrives and one for
what leaves; :func:`waited` lets one stream wait for another, and the reverse in backward.

Source: Kim et al., torchgpipe, arXiv 2004.09910, sections 3.2 and 3.3.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Stream = torch.cuda.Stream | None
"""None stands for a CPU, which has finished whatever was begun."""

Tensors = tuple[Tensor, ...]


class Lane(NamedTuple):
    """Where a part runs, on which stream, and on which ones its tensors arrive and leave."""

    device: torch.device
    compute: Stream
    arrive: Stream
    leave: Stream

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the calling thread uses the part's device and stream."""
        return contextlib.nullcontext() if self.compute is None else torch.cuda.stream(self.compute)


def lane(device: torch.device, part: int, *, copies: bool) -> Lane:
    """Return the lane of a part.

    Args:
        device: of the part; it computes on the calling thread's current stream.
        part: its index.
        copies: whether there are other devices; without, no streams are needed.
    """
    if device.type != "cuda" or not copies:
        return Lane(device, None, None, None)
    current = torch.cuda.current_stream(device)
    return Lane(device, current, _stream(device, part, "arrive"), _stream(device, part, "leave"))


@functools.cache
def _stream(device: torch.device, part: int, way: str) -> torch.cuda.Stream:
    """Return always the same stream: each new one would get memory of its own in the allocator."""
    return torch.cuda.Stream(device)


def fork(tensors: Sequence[Tensor]) -> tuple[Tensors, Tensor | None]:
    """Return tensors and a phony: their gradients pass when the phony's users are done.

    The phony is None if no backward pass can follow, for then there is nothing to order.
    """
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return tuple(tensors), None
    (phony,), rest = _through(_Fork, tensors)
    return rest, phony


def join(tensors: Sequence[Tensor], phony: Tensor | None) -> Tensors:
    """Return tensors whose gradients pass before those of whatever the phony was forked from."""
    return tuple(tensors) if phony is None else _through(_Join, tensors, phony)[1]


def waited(tensors: Sequence[Tensor], first: Stream, then: Stream) -> Tensors:
    """Return tensors that stream ``then`` may use, for it waits for stream ``first``.

    In backward ``first`` waits for ``then``.
    """
    if first is None or then is None:
        return tuple(tensors)
    then.wait_stream(first)
    return _through(_Wait, tensors, first, then)[1]


def moved(tensors: Sequence[Tensor], source: Lane, destination: Lane) -> Tensors:
    """Return tensors copied from one lane to another, as their gradients are in backward."""
    if source.device == destination.device:
        return tuple(tensors)
    return tuple(
        _Move.apply(source, destination, tensor)
        if tensor.requires_grad
        else _copied(tensor, source, destination, source.leave, destination.arrive)
        for tensor in tensors
    )


def _copied(
    tensor: Tensor, source: Lane, destination: Lane, leave: Stream, arrive: Stream
) -> Tensor:
    """Copy a tensor by two streams, which the allocator hears of."""
    # torch lets a copy between two GPUs run on the source's stream, and the other one wait for it.
    with contextlib.ExitStack() as stack:
        for stream in (leave, arrive):
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
        copy = tensor.detach().to(
            destination.device, non_blocking=leave is not None and arrive is not None
        )
    if leave is not None:
        tensor.record_stream(leave)
    if destination.compute is not None:
        copy.record_stream(destination.compute)
    return copy


def _through(
    function: Any, tensors: Sequence[Tensor], *arguments: Any
) -> tuple[Sequence[Tensor], Tensors]:
    """Pass those tensors that require grad through a function.

    Returns:
        what the function returns before them; all tensors.
    """
    tracked = [tensor for tensor in tensors if tensor.requires_grad]
    if not tracked:
        return (), tuple(tensors)
    passed = function.apply(*arguments, *tracked)
    extra = len(passed) - len(tracked)
    rest = iter(passed[extra:])
    return passed[:extra], tuple(next(rest) if t.requires_grad else t for t in tensors)


# The identities below detach what they return: torch refuses in-place changes of views of inputs.


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensors:
        ctx.set_materialize_grads(False)
        phony = torch.empty(0, device=tensors[0].device)
        return (phony, *(tensor.detach() for tensor in tensors))

    @staticmethod
    def backward(ctx: Any, _: Any, *gradients: Tensor | None) -> Any:
        return gradients


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, *tensors: Tensor) -> Tensors:
        ctx.set_materialize_grads(False)
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return None, *gradients


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, first: torch.cuda.Stream, then: torch.cuda.Stream, *tensors: Tensor
    ) -> Tensors:
        ctx.set_materialize_grads(False)
        ctx.first, ctx.then = first, then
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        ctx.first.wait_stream(ctx.then)
        return None, None, *gradients


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Lane, destination: Lane, tensor: Tensor) -> Tensor:
        ctx.lanes = source, destination
        return _copied(tensor, source, destination, source.leave, destination.arrive)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        source, destination = ctx.lanes
        # Back by the same streams: both wait for the compute streams as they did in forward.
        back = _copied(gradient, destination, source, destination.arrive, source.leave)
        return None, None, back
