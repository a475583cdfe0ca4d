"""Activation checkpointing (Chen et al., "Training deep nets with sublinear memory cost",
arXiv 1604.06174) with early recomputation (Kim et al., torchgpipe, arXiv 2004.09910, section 3.2).

    forward:   inputs -> [1] Checkpoint, runs without a graph -> [2] Recompute, the identity -> out
    backward:  inputs <- [4] Checkpoint, back-propagates      <- [3] Recompute, runs again <- grad

Between [1] and [2] a pipeline waits for its copies: in backward the recomputation [3] is then under
way before the gradient has arrived, which [4] alone needs.

Departures from the paper's library: what runs again is a function of its inputs alone, its random
numbers keyed by the caller, so no generator state is kept; autocast settings are restored; an
in-place change of an input is refused instead of counted twice; ``retain_graph`` works.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raykb.gpipe.modes import caller_autocast

CHECKPOINTS = ("always", "except_last", "never")
"""Which micro-batches of a mini-batch are checkpointed; the last is back-propagated first."""

Run = Callable[..., tuple[Tensor, ...]]


class _Flags(threading.local):
    checkpointing = False
    recomputing = False


_FLAGS = _Flags()


def is_checkpointing() -> bool:
    """Return whether the calling thread runs a part of a model that it will run again."""
    return _FLAGS.checkpointing


def is_recomputing() -> bool:
    """Return whether the calling thread runs a part again, so that side effects can be left out."""
    return _FLAGS.recomputing


@contextlib.contextmanager
def _flagged(*, checkpointing: bool = False, recomputing: bool = False) -> Iterator[None]:
    before = _FLAGS.checkpointing, _FLAGS.recomputing
    _FLAGS.checkpointing, _FLAGS.recomputing = checkpointing, recomputing
    try:
        yield
    finally:
        _FLAGS.checkpointing, _FLAGS.recomputing = before


def checkpoint(run: Run, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return ``run(*inputs)``, keeping for backward the inputs alone and running it again there.

    Floating-point outputs require grad even if no input does: parameters inside ``run`` may. With
    gradients disabled, ``run`` is just called.

    Args:
        run: from tensors to a tuple of tensors; a function of its inputs and of its parameters,
            which is why its random numbers must be keyed.
        inputs: tensors of any type.

    Raises:
        RuntimeError: in backward, if ``run`` changed an input in place.
    """
    if not torch.is_grad_enabled():
        return run(*inputs)
    pending = Checkpointed(run, inputs)
    return pending.recomputed(pending.outputs)


class Checkpointed:
    """One checkpointed run in its two steps, for whoever has something to do between them.

    Args:
        run: as for :func:`checkpoint`.
        inputs: of ``run``.

    Attributes:
        outputs: of ``run``; to be handed to :meth:`recomputed`, as they are or passed on by
            functions that do not change them.
    """

    def __init__(self, run: Run, inputs: Sequence[Tensor]) -> None:
        self._inputs = [tensor.detach() for tensor in inputs]
        self._again = _Again(run, inputs)
        # The anchor requires grad, and so do the outputs of a function that it goes into.
        anchor = torch.empty(0, requires_grad=True)
        self.outputs: tuple[Tensor, ...] = Checkpoint.apply(self._again, anchor, *inputs)

    def recomputed(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return ``outputs`` such that backward, on its way through here, runs them again."""
        floating = [tensor for tensor in outputs if tensor.requires_grad]
        if not floating:
            return tuple(outputs)
        passed = iter(Recompute.apply(self._again, len(floating), *floating, *self._inputs))
        return tuple(next(passed) if tensor.requires_grad else tensor for tensor in outputs)


class _Again:
    """What both functions of one run share: how to run, and the result of running again."""

    def __init__(self, run: Run, inputs: Sequence[Tensor]) -> None:
        self.run = run
        self.autocast = caller_autocast({tensor.device.type for tensor in inputs})
        self.requires_grad = [tensor.requires_grad for tensor in inputs]
        self.changed: list[int] = []  # inputs that the run changed in place, silently
        self.result: tuple[list[Tensor], tuple[Tensor, ...]] | None = None


class Checkpoint(torch.autograd.Function):
    """Run without a graph; in backward, back-propagate through the run that Recompute made."""

    @staticmethod
    def forward(ctx: Any, again: _Again, anchor: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the run."""
        ctx.again = again
        ctx.set_materialize_grads(False)
        leaves = [tensor.detach() for tensor in inputs]
        before = [tensor._version for tensor in leaves]
        with _flagged(checkpointing=True), again.autocast():
            outputs = again.run(*leaves)
        changed = [tensor._version != was for tensor, was in zip(leaves, before, strict=True)]
        # Where an input requires grad, running again fails by itself: a leaf cannot be changed.
        again.changed = [
            i for i, needed in enumerate(again.requires_grad) if changed[i] and not needed
        ]
        return tuple(tensor.detach() for tensor in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """Return the gradients of the inputs; those of parameters are accumulated."""
        leaves, outputs = ctx.again.result
        ctx.again.result = None
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        if pairs:
            torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
        return None, None, *(leaf.grad for leaf in leaves)


class Recompute(torch.autograd.Function):
    """The identity; in backward, run again with a graph."""

    @staticmethod
    def forward(ctx: Any, again: _Again, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the first ``count`` tensors, the outputs; the others are the inputs."""
        ctx.again = again
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[count:])
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """Return the gradients as they are."""
        again = ctx.again
        if again.changed:
            raise RuntimeError(
                f"inputs {again.changed} of a checkpointed part were changed in place, which "
                "running it again would do twice; make the operation out of place, or set "
                "checkpoint='never'"
            )
        leaves = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, again.requires_grad, strict=True)
        ]
        with _flagged(recomputing=True), again.autocast(), torch.enable_grad():
            again.result = leaves, again.run(*leaves)
        return None, None, *gradients, *[None] * len(leaves)
