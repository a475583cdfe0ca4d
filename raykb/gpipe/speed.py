"""How fast the devices of a pipeline's workers are, beside each other.

All workers multiply matrices, the bulk of a network's work, in rounds, all at the same time, so
that what they share slows them as it will in the training::

    rate of a worker  = products a second, of its slowest replica
    speed of a worker = its rate / that of the fastest, the median over the rounds

It is the clock that counts, not the time of the CPU: a worker that stands still now and then, by a
quota or beside other work, is slower by that.
"""

import time

import torch
import torch.distributed as dist
from torch import Tensor

from raykb.gpipe.grid import Grid

NOISE = 0.8
"""Workers above this share of the fastest one's rate are as fast: so far chance alone moves it."""

SURE = 0.8
"""Share of the rounds in which a worker has to be the slower one; beside busy neighbours that come
and go, now this one is slower and now that one."""

_ROUNDS, _WINDOW_S = 25, 0.2
_SIDES = {"cpu": 256, "cuda": 4096}  # of the matrices: a millisecond or so for a product


def products_a_second(device: torch.device) -> float:
    """Return how many matrix products a second ``device``, of this process, makes just now."""
    side = _SIDES.get(device.type, 1024)
    one = torch.ones(side, side, device=device)
    product = one @ one  # warms up
    synchronize = torch.get_device_module(device).synchronize
    synchronize(device)
    begin, count = time.perf_counter(), 0
    while (took := time.perf_counter() - begin) < _WINDOW_S:
        torch.mm(one, one, out=product)
        synchronize(device)
        count += 1
    return count / took


def relative_speeds(grid: Grid, device: torch.device) -> list[float]:
    """Return the speed of each worker of a pipeline, the same on every process of the run.

    All of them have to call it.

    Args:
        grid: the processes.
        device: of this process.
    """
    rounds = []
    dist.barrier()
    for _ in range(_ROUNDS):
        own = torch.tensor([products_a_second(device)], dtype=torch.float64, device=device)
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, own)  # nobody begins the next round before
        rounds.append(torch.cat(everyone).view(grid.replicas, grid.workers).amin(0))
    return speeds_of(torch.stack(rounds))


def speeds_of(rates: Tensor) -> list[float]:
    """Return the speed of each worker; all are 1 unless one of them is slower for sure.

    Args:
        rates: (rounds, workers) in products a second.
    """
    shares = rates / rates.sum(1, keepdim=True)  # what slows all of a round is no difference
    fastest = shares.median(0).values.argmax()
    beside = rates / rates[:, fastest, None]
    speeds = beside.median(0).values
    slower = (speeds < NOISE) & (beside.quantile(SURE, dim=0) < 1)
    if not slower.any():
        return [1.0] * len(speeds)
    found: list[float] = (speeds / speeds.max()).tolist()
    return found
