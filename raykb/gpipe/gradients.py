"""Gradients of a model in pieces: summed over replicas, clipped as one, scaled as one."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

_BUCKET_BYTES = 25 * 2**20
_LEAST_SCALE = 2.0**-24  # the least number of fp16: below it every finite gradient would vanish


def sum_over_replicas(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Add the gradients of equal parameters of all processes of ``group``, in place.

    A parameter without a gradient counts as zero: a replica may have had no sample of a batch.
    Sends buckets of about 25 MiB; each is under way while the next one is filled.
    """
    under_way: list[tuple[Any, Tensor, list[nn.Parameter]]] = []
    for bucket in _buckets([parameter for parameter in parameters if parameter.requires_grad]):
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.reshape(-1) for p in bucket if p.grad is not None])
        under_way.append((dist.all_reduce(flat, group=group, async_op=True), flat, bucket))
    for work, flat, bucket in under_way:
        work.wait()
        for parameter, part in zip(
            bucket, flat.split([parameter.numel() for parameter in bucket]), strict=True
        ):
            parameter.grad = part.view_as(parameter)


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters in order, in groups of one type and bounded size."""
    buckets: list[list[nn.Parameter]] = []
    filled = 0
    for parameter in parameters:
        same = bool(buckets) and buckets[-1][0].dtype == parameter.dtype
        if not same or filled + parameter.nbytes > _BUCKET_BYTES:
            buckets.append([])
            filled = 0
        buckets[-1].append(parameter)
        filled += parameter.nbytes
    return buckets


def clip_over_stages(
    parameters: Iterable[nn.Parameter], max_norm: float, group: dist.ProcessGroup
) -> Tensor:
    """Clip the gradient of a model whose parameters are spread over ``group``; return its norm.

    As ``torch.nn.utils.clip_grad_norm_`` would on the whole model: one 2-norm over all.

    Args:
        parameters: those of this process.
        max_norm: largest norm.
        group: the processes of one pipeline.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    device = parameters[0].device if parameters else _device(group)
    square = torch.zeros((), dtype=torch.float64, device=device)
    if gradients:
        square += get_total_norm(gradients).double().square()
    if dist.get_world_size(group) > 1:
        dist.all_reduce(square, group=group)
    norm = square.sqrt()  # stays in float64: gradients may be, too
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _device(group: dist.ProcessGroup | None = None) -> torch.device:
    """Return where a stage without parameters has what it sends: NCCL takes no CPU tensors."""
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


class LossScaler:
    """Dynamic loss scaling for fp16 over processes that have to decide alike.

    Scale, growth and back-off are those of ``torch.amp.GradScaler`` (Micikevicius et al., "Mixed
    precision training", ICLR 2018): an overflow anywhere skips the step everywhere.

    Args:
        scale: factor of the loss at first.
        growth_steps: steps without overflow after which the scale doubles.
    """

    def __init__(self, *, scale: float = 2.0**16, growth_steps: int = 2000) -> None:
        self.scale = scale
        self._growth_steps = growth_steps
        self._good_steps = 0

    def unscale(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Divide the gradients by the scale; return whether all, of all processes, are finite."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        bad = torch.zeros((), device=gradients[0].device if gradients else _device())
        if gradients:
            for gradient in gradients:
                gradient.mul_(1.0 / self.scale)
            finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
            bad = (~finite).float()
        if dist.get_world_size() > 1:
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        return not bool(bad)

    def update(self, finite: bool) -> None:
        """Halve the scale after an overflow; double it after long enough without.

        Raises:
            FloatingPointError: the gradients were not finite however small the scale was.
        """
        self._good_steps = self._good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2.0
            if self.scale < _LEAST_SCALE:
                raise FloatingPointError(
                    f"the gradients are not finite at any scale of the loss, down to {self.scale}: "
                    "it is not the scale that makes them so. Look for a division by 0, or a "
                    "learning rate that is too large; recipe.precision=bf16 or fp32 tells whether "
                    "fp16 has a part in it"
                )
        elif self._good_steps == self._growth_steps:
            self.scale, self._good_steps = self.scale * 2.0, 0

    def state_dict(self) -> dict[str, float]:
        """Return scale and steps since it changed."""
        return {"scale": self.scale, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.scale, self._good_steps = state["scale"], int(state["good_steps"])
