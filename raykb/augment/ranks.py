"""Ranks of values within a row: exact, by soft comparisons, and by a network taught to sort.

    r_a(v)  = 1/A (1/2 + sum_b [v_b > v_a] + 1/2 [v_b = v_a])       1/A of the largest
    r~_a(v) = 1/A (1/2 + sum_b sigmoid((v_b - v_a) / T))            pairwise
    r~(v)   = sigmoid(W h + b),  h = GRU((v - mean v) / sd v)       a sorter, both directions

Martin Engilberge, Louis Chevallier, Patrick Pérez, Matthieu Cord, "SoDeep: a Sorting Deep net to
learn ranking loss surrogates", CVPR 2019, arXiv 1904.04272: a network learns to sort vectors that
are drawn, is frozen, and lends a ranking loss its gradient.

Symbols:
    v, A    values (N, A), and how many there are of a row
    T       temperature; the pairwise form is exact as it goes to 0

Departures: values are standardised within their row, for the order does not depend on it; vectors
to sort are normal and uniform ones alone.
"""

import functools

import torch
from torch import Tensor, nn

from raykb.engine.seeding import apart, stream_seed

_BATCH, _WIDTH, _RATE = 64, 32, 1e-2
_LEAST = 1e-6  # deviation of a row whose values are equal


def ranks(values: Tensor) -> Tensor:
    """Return ranks (N, A) from 1/A of the largest value to 1 of the smallest; equals share them."""
    difference = values[:, None, :] - values[:, :, None]  # (N, A, A): v_b - v_a at [a, b]
    return (0.5 + (difference.sign() + 1).sum(2) / 2) / values.shape[1]


def soft_ranks(values: Tensor, temperature: float) -> Tensor:
    """Return r~ (N, A), which has a gradient and is :func:`ranks` as the temperature goes to 0."""
    above_by = values[:, None, :] - values[:, :, None]  # (N, A, A): v_b - v_a at [a, b]
    return (0.5 + (above_by / temperature).sigmoid().sum(2)) / values.shape[1]


class Sorter(nn.Module):
    """From values (N, A) to ranks (N, A), for any A; :func:`taught_sorter` returns one that can."""

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__()
        self.layers = nn.GRU(1, width, batch_first=True, bidirectional=True)
        self.output = nn.Linear(2 * width, 1)

    def forward(self, values: Tensor) -> Tensor:
        """Return ranks, from 1/A of the largest value to 1 of the smallest."""
        centred = values - values.mean(1, keepdim=True)
        spread = centred.square().mean(1, keepdim=True).sqrt().clamp_min(_LEAST)
        hidden, _ = self.layers((centred / spread)[..., None])  # (N, A, 2 width)
        found: Tensor = self.output(hidden)[..., 0].sigmoid()
        return found


def taught_sorter(size: int, steps: int) -> Sorter:
    """Return a frozen sorter that was taught by ``steps`` batches of vectors of ``size`` values.

    On the meta device it is one that was not. It is the same for the same arguments.
    """
    sorter = Sorter()
    if not sorter.output.weight.is_meta:
        sorter.load_state_dict(_taught(size, steps))
    return sorter.requires_grad_(False)


@functools.lru_cache(maxsize=4)
def _taught(size: int, steps: int) -> dict[str, Tensor]:
    with apart(stream_seed(0, "sorter", size)), torch.enable_grad():
        sorter = Sorter()
        optimizer = torch.optim.Adam(sorter.parameters(), _RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            half = _BATCH // 2
            values = torch.cat([torch.randn(half, size), torch.rand(half, size)])
            optimizer.zero_grad()
            (sorter(values) - ranks(values)).abs().mean().backward()
            optimizer.step()
            schedule.step()
    return sorter.state_dict()
