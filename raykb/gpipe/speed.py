"""How fast the devices of a pipeline's workers are, beside each other.

All workers multiply matrices, the bulk of a network's work, for a while at the same time, so that
what they share slows them as it will in the training::

    rate of a worker  = products a second, of its slowest replica
    speed of a worker = its rate / that of the fastest

A worker that stands still now and then, by a quota or beside other work, has its mean rate.
"""

import statistics
import time

import torch
import torch.distributed as dist

from raykb.gpipe.grid import Grid

NOISE = 0.8
"""Workers above this share of the fastest one's rate are as fast: so far chance alone moves it."""

_SIDES = {"cpu": 256, "cuda": 4096}  # of the matrices: a millisecond or so for a product


def products_a_second(device: torch.device, window_s: float = 0.4, windows: int = 5) -> float:
    """Return how many matrix products a second ``device`` makes, the median of some windows.

    Args:
        device: of this process.
        window_s: seconds of a window.
        windows: their number; on a busy host the first one says little.
    """
    side = _SIDES.get(device.type, 1024)
    one = torch.ones(side, side, device=device)
    product = one @ one  # warms up
    synchronize = torch.get_device_module(device).synchronize
    synchronize(device)
    rates = []
    for _ in range(windows):
        begin, count = time.perf_counter(), 0
        while (took := time.perf_counter() - begin) < window_s:
            torch.mm(one, one, out=product)
            synchronize(device)
            count += 1
        rates.append(count / took)
    return statistics.median(rates)


def relative_speeds(grid: Grid, device: torch.device) -> list[float]:
    """Return the speed of each worker of a pipeline, the same on every process of the run.

    All of them have to call it.

    Args:
        grid: the processes.
        device: of this process.
    """
    dist.barrier()
    own = torch.tensor([products_a_second(device)], dtype=torch.float64, device=device)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    rates = torch.cat(everyone).view(grid.replicas, grid.workers).amin(0)
    speeds: list[float] = (rates / rates.max()).tolist()
    return speeds if min(speeds) < NOISE else [1.0] * grid.workers
