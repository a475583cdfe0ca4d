"""Gather tensors over data-parallel ranks, with gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """Return the number of ranks of the default process group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all ranks one after another; with one rank the tensor itself.

    Backward is the adjoint: a rank's tensor gets the sum over the ranks of what each of them wants
    of it. So a loss that every rank computes from all that was gathered has, after the mean over
    ranks that data-parallel training takes, the gradient of that loss on one rank that has it all.

    Args:
        tensor: (n, ...), of one shape and type on all ranks, each of which must call.

    Returns:
        (ranks * n, ...), in the order of the ranks.
    """
    if ranks() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(ranks())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(ranks())[dist.get_rank()]
