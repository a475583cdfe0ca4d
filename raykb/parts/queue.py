"""The last rows that were seen, in a fixed number of places."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Queue(nn.Module):
    """A queue of (size, width) rows, of which the oldest give way to new ones.

    It begins full of random rows of length 1. Its state is part of the state of whoever has it;
    nothing of it waits for the device.

    Args:
        size: rows that it holds.
        width: of a row.

    Raises:
        ValueError: one is below 1.
    """

    rows: Tensor
    oldest: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if min(size, width) < 1:
            raise ValueError(f"size={size}, width={width}: must be at least 1")
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    def seen(self) -> Tensor:
        """Return the rows (size, width) as they are now; they stay so when others are pushed."""
        return self.rows.clone()

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Put rows (N, width) in the places of the oldest; of more than fit the last stay.

        Give it the rows of all ranks, in one order: then all ranks have one queue.
        """
        size = len(self.rows)
        kept = rows[-size:]
        places = (self.oldest + torch.arange(len(kept), device=rows.device)) % size
        self.rows.index_copy_(0, places, kept.to(self.rows.dtype))
        self.oldest.copy_((self.oldest + len(kept)) % size)
