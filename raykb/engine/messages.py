"""What ranks tell each other beside tensors: plain values as JSON, and bytes; never pickles.

The collectives of objects that ``torch.distributed`` has unpickle whatever arrives, at a port that
asks for no token: who reaches it would run code. What arrives here becomes a plain value, or an
error.
"""

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None
"""Processes that speak to each other; None for all of them."""


def gathered(value: Any, *, group: Group = None, device: torch.device | str = "cpu") -> list[Any]:
    """Return the values of all ranks of a group, by rank; each of them must call this.

    Args:
        value: of this rank, as JSON has it: a tuple arrives as a list.
        group: the ranks.
        device: that the group sends from.
    """
    own = _tensor(json.dumps(value).encode(), device)
    count = torch.tensor([len(own)], device=device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, count, group=group)
    sizes = [int(each) for each in counts]
    padded = own.new_zeros(max(sizes))
    padded[: len(own)] = own
    rows = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(rows, padded, group=group)
    return [json.loads(_bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def told(
    value: Any, *, source: int = 0, group: Group = None, device: torch.device | str = "cpu"
) -> Any:
    """Return the value of the rank ``source``, on all ranks of a group; each must call this.

    Args:
        value: of that rank, as JSON has it; of others it is not looked at.
        source: number among all ranks, not those of the group.
        group: the ranks.
        device: that the group sends from.
    """
    data = json.dumps(value).encode() if dist.get_rank() == source else b""
    return json.loads(told_bytes(data, source=source, group=group, device=device))


def told_bytes(
    data: bytes, *, source: int = 0, group: Group = None, device: torch.device | str = "cpu"
) -> bytes:
    """Return the bytes of the rank ``source``, on all ranks of a group, as :func:`told` does."""
    count = torch.tensor([len(data)], device=device)
    dist.broadcast(count, source, group=group)
    mine = dist.get_rank() == source
    sent = _tensor(data, device) if mine else torch.empty(int(count), dtype=torch.uint8).to(device)
    if len(sent):
        dist.broadcast(sent, source, group=group)
    return data if mine else _bytes(sent)


def _tensor(data: bytes, device: torch.device | str) -> Tensor:
    if not data:  # of which torch makes no buffer
        return torch.empty(0, dtype=torch.uint8, device=device)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
