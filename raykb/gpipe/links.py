"""What connects the stages of different workers besides torch's own sends: skips and types.

torch's pipelining passes floating tensors between neighbouring stages. Here stands what it lacks:

    wire --enter--> values --(layers)--> values --leave--> wire
                      ^                     |
                   collect  <- - portal - - post             of a later stage  <-  of an earlier one

``leave`` gives every tensor a gradient path and makes integers travel as floats, bit by bit;
``enter`` undoes it and answers every tensor with a gradient. A portal takes the skips from the
stage that stashed them straight to the one that pops them, and their gradients back.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from raykb.gpipe.probe import Spec

_TRAVELS_AS = {  # bits of the first are those of the second
    torch.int64: torch.float64,
    torch.int32: torch.float32,
    torch.int16: torch.float16,
}
_SMALL = (torch.bool, torch.uint8, torch.int8)  # exact as float32


def wire_spec(spec: Spec) -> Spec:
    """Return how a tensor of ``spec`` looks on its way between stages."""
    if spec.dtype.is_floating_point:
        return spec
    if spec.dtype in _SMALL:
        return Spec(spec.shape, torch.float32)
    if spec.dtype in _TRAVELS_AS:
        return Spec(spec.shape, _TRAVELS_AS[spec.dtype])
    raise TypeError(
        f"a tensor of {spec.dtype} reaches a boundary of stages; floats, bool and integers of 8 "
        "to 64 bits can cross it"
    )


def enter(wire: Sequence[Tensor], specs: Sequence[Spec]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a phony that stands for the entrance in backward, and what ``wire`` means."""
    phony, *values = _Enter.apply(specs, *wire)
    return phony, tuple(values)


def leave(
    values: Sequence[Tensor], specs: Sequence[Spec], phonies: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return ``values`` as they travel; in backward, what made the ``phonies`` is reached too."""
    return tuple(_Leave.apply(specs, len(phonies), *phonies, *values))


def check_shapes(tensors: Sequence[Tensor], specs: Sequence[Spec]) -> None:
    """Refuse to send what the other side does not expect: it would be received as something else.

    Raises:
        ValueError: a tensor has another shape, or another type among integers, than was probed.
    """
    for tensor, spec in zip(tensors, specs, strict=True):
        fits = tensor.dtype == spec.dtype or (
            tensor.is_floating_point() and spec.dtype.is_floating_point
        )
        if tensor.shape != spec.shape or not fits:
            raise ValueError(
                f"a tensor {tuple(tensor.shape)} of {tensor.dtype} leaves the stage, where "
                f"{spec.shape} of {spec.dtype} was found before the start: shapes may depend on "
                "the shape of the input alone, not on its numbers; cut elsewhere, or pad it"
            )


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, specs: Sequence[Spec], *wire: Tensor) -> tuple[Tensor, ...]:
        values = [_decode(tensor, spec.dtype) for tensor, spec in zip(wire, specs, strict=True)]
        ctx.like = [Spec.of(tensor) for tensor in wire]
        ctx.device = wire[0].device
        ctx.mark_non_differentiable(*(v for v in values if not v.is_floating_point()))
        return (torch.empty(0, device=wire[0].device), *values)

    @staticmethod
    def backward(ctx: Any, _: Any, *gradients: Tensor) -> Any:
        return None, *(  # contiguous, as it will be sent
            gradient.contiguous()
            if gradient.dtype == spec.dtype
            else spec.empty(ctx.device).zero_()
            for gradient, spec in zip(gradients, ctx.like, strict=True)
        )


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, specs: Sequence[Spec], phonies: int, *tensors: Tensor) -> Any:
        ctx.phonies = phonies
        ctx.floating = [tensor.is_floating_point() for tensor in tensors[phonies:]]
        # torch 2.11 refuses the odd strides that contiguous() leaves to sides of 1, and any torch
        # detaches in place what left once the gradients of the inputs are there: never a view.
        return tuple(
            _encode(tensor, spec.dtype).reshape(-1).view(spec.shape).detach()
            for tensor, spec in zip(tensors[phonies:], specs, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        kept = (
            g if floating else None for g, floating in zip(gradients, ctx.floating, strict=True)
        )
        return (None, None, *[None] * ctx.phonies, *kept)


def _encode(tensor: Tensor, travels_as: torch.dtype) -> Tensor:
    tensor = tensor.detach()
    if tensor.dtype == travels_as:
        return tensor
    if tensor.is_floating_point() or tensor.dtype in _SMALL:
        return tensor.to(travels_as)
    return tensor.contiguous().view(travels_as)


def _decode(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach()
    if tensor.dtype == dtype:
        return tensor
    return tensor.to(dtype) if dtype in _SMALL else tensor.view(dtype)


class Portal(Protocol):
    """The way of one stage's skips to one later stage, and of their gradients back."""

    specs: Sequence[Spec]

    def send(self, micro_batch: int, tensors: Sequence[Tensor]) -> None:
        """Start tensors on their way to the stage that pops them."""
        ...

    def receive(self, micro_batch: int) -> list[Tensor]:
        """Return what was sent, waiting for it."""
        ...

    def send_back(self, micro_batch: int, gradients: Sequence[Tensor]) -> None:
        """Start gradients on their way to the stage that stashed."""
        ...

    def receive_back(self, micro_batch: int) -> list[Tensor]:
        """Return what was sent back, waiting for it."""
        ...

    def close(self) -> None:
        """Wait until all that was sent is gone."""
        ...


class LocalPortal:
    """Between two stages of one worker: tensors stay where they are."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.specs = specs
        self._forward: dict[int, list[Tensor]] = {}
        self._backward: dict[int, list[Tensor]] = {}

    def send(self, micro_batch: int, tensors: Sequence[Tensor]) -> None:
        """Keep tensors."""
        self._forward[micro_batch] = [tensor.detach() for tensor in tensors]

    def receive(self, micro_batch: int) -> list[Tensor]:
        """Return what was kept."""
        return self._forward.pop(micro_batch)

    def send_back(self, micro_batch: int, gradients: Sequence[Tensor]) -> None:
        """Keep gradients."""
        self._backward[micro_batch] = list(gradients)

    def receive_back(self, micro_batch: int) -> list[Tensor]:
        """Return the gradients that were kept."""
        return self._backward.pop(micro_batch)

    def close(self) -> None:
        """Nothing is under way."""


class RemotePortal:
    """Between stages of two workers, over process groups of the two alone, one each way.

    Args:
        specs: of the tensors, as they are.
        peer: global rank of the other worker.
        groups: of the way there and of the way back; nothing else uses them.
        device: where tensors are received.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        peer: int,
        groups: tuple[dist.ProcessGroup, dist.ProcessGroup],
        device: torch.device,
    ) -> None:
        self.specs = specs
        self._peer, self._device = peer, device
        self._there, self._back = groups
        self._under_way: list[tuple[Any, Tensor]] = []

    def send(self, micro_batch: int, tensors: Sequence[Tensor]) -> None:
        """Send tensors; returns at once."""
        for tensor in tensors:
            self._start(tensor.detach(), self._there)

    def receive(self, micro_batch: int) -> list[Tensor]:
        """Return the tensors of the next micro-batch; both ends go through them in one order."""
        return [self._wait(spec, self._there) for spec in self.specs]

    def send_back(self, micro_batch: int, gradients: Sequence[Tensor]) -> None:
        """Send the gradients of what has one; returns at once."""
        for gradient, spec in zip(gradients, self.specs, strict=True):
            if spec.differentiable:
                self._start(gradient, self._back)

    def receive_back(self, micro_batch: int) -> list[Tensor]:
        """Return the gradients of the next micro-batch; zeros, never used, for integers."""
        return [
            self._wait(spec, self._back)
            if spec.differentiable
            else spec.empty(self._device).zero_()
            for spec in self.specs
        ]

    def close(self) -> None:
        """Wait until all that was sent has arrived."""
        for work, _ in self._under_way:
            work.wait()
        self._under_way.clear()

    def _start(self, tensor: Tensor, group: dist.ProcessGroup) -> None:
        tensor = tensor.contiguous()
        self._under_way = [
            (work, kept) for work, kept in self._under_way if not work.is_completed()
        ]
        self._under_way.append((dist.isend(tensor, self._peer, group=group), tensor))

    def _wait(self, spec: Spec, group: dist.ProcessGroup) -> Tensor:
        tensor = spec.empty(self._device)
        work = dist.irecv(tensor, self._peer, group=group)
        if work is not None:
            work.wait()
        return tensor


def post(portal: Portal, micro_batch: int, phony: Tensor, skips: Sequence[Tensor]) -> Tensor:
    """Send skips; return a phony to hand to :func:`leave`, so that their gradients are fetched.

    ``phony`` requires grad when a backward pass will follow, whether a skip does or not.
    """
    after: Tensor = _Post.apply(portal, micro_batch, phony, *skips)
    return after


def collect(portal: Portal, micro_batch: int, phony: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a phony for :func:`leave` and the skips that were posted.

    ``phony`` requires grad when a backward pass will follow.
    """
    after, *skips = _Collect.apply(portal, micro_batch, phony)
    return after, tuple(skips)


class _Post(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, portal: Portal, micro_batch: int, _: Tensor, *skips: Tensor) -> Tensor:
        ctx.portal, ctx.micro_batch, ctx.gradients = portal, micro_batch, None
        pairs = zip(skips, portal.specs, strict=True)
        portal.send(micro_batch, [skip.to(spec.dtype) for skip, spec in pairs])
        return torch.empty(0, device=skips[0].device)

    @staticmethod
    def backward(ctx: Any, _: Any) -> Any:
        if ctx.gradients is None:  # a backward pass in two parts may come through here twice
            ctx.gradients = ctx.portal.receive_back(ctx.micro_batch)
        gradients, specs = ctx.gradients, ctx.portal.specs
        return (
            None,
            None,
            None,
            *(g if s.differentiable else None for g, s in zip(gradients, specs, strict=True)),
        )


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, portal: Portal, micro_batch: int, phony: Tensor) -> tuple[Tensor, ...]:
        ctx.portal, ctx.micro_batch = portal, micro_batch
        skips = portal.receive(micro_batch)
        ctx.mark_non_differentiable(*(s for s in skips if not Spec.of(s).differentiable))
        return (torch.empty(0, device=phony.device), *skips)

    @staticmethod
    def backward(ctx: Any, _: Any, *gradients: Tensor) -> Any:
        ctx.portal.send_back(ctx.micro_batch, gradients)
        return None, None, None
