"""Who does what: the processes of a run as replicas of one pipeline, and their groups.

rank = replica * workers + worker            which stages a worker has is the schedule's business

          worker 0   worker 1   worker 2
replica 0    0 ------- 1 -------- 2          a row is a pipeline
             |         |          |
replica 1    3 ------- 4 -------- 5          a column has the same layers
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Grid:
    """The place of this process, and its process groups.

    Attributes:
        rank: global rank of this process.
        workers: processes of one pipeline.
        replicas: equal pipelines, each with its share of every batch.
        row: processes of this pipeline, by worker.
        column: processes with the same layers, by replica.
        timeout: of the groups.
    """

    rank: int
    workers: int
    replicas: int
    row: dist.ProcessGroup
    column: dist.ProcessGroup
    timeout: datetime.timedelta

    @property
    def worker(self) -> int:
        """Place of this process in its pipeline."""
        return self.rank % self.workers

    @property
    def replica(self) -> int:
        """Which of the pipelines this process is part of."""
        return self.rank // self.workers

    def peer(self, worker: int) -> int:
        """Return the global rank of a worker of this pipeline."""
        return self.replica * self.workers + worker

    def pair_groups(
        self, pairs: Sequence[tuple[int, int]]
    ) -> list[tuple[dist.ProcessGroup, dist.ProcessGroup]]:
        """Return two groups of its own, there and back, for each pair of workers of a pipeline.

        Every process of the run has to call it with the same pairs; groups of which it is no
        member are of no use to it.
        """
        found = []
        for replica in range(self.replicas):
            for pair in pairs:
                ranks = [replica * self.workers + worker for worker in pair]
                there, back = (_group(ranks, self.timeout) for _ in range(2))
                if replica == self.replica:
                    found.append((there, back))
        return found


def make_grid(workers: int, replicas: int = 1, *, timeout_s: float = 300.0) -> Grid:
    """Return the grid of the running process group; called by every process of it.

    A process by itself, without a process group, gets one of its own.

    Args:
        workers: processes of one pipeline.
        replicas: pipelines.
        timeout_s: seconds after which a process gives up waiting for another.

    Raises:
        ValueError: the process group has another size.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    if not dist.is_initialized() and workers * replicas == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]  # documented all the same
        dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timeout)
    size = dist.get_world_size()
    if size != workers * replicas:
        raise ValueError(
            f"workers: {workers} x replicas: {replicas} = {workers * replicas}, must be the "
            f"{size} processes of the process group"
        )
    rank = dist.get_rank()
    rows = [list(range(r * workers, (r + 1) * workers)) for r in range(replicas)]
    columns = [list(range(worker, size, workers)) for worker in range(workers)]
    groups = {tuple(ranks): _group(ranks, timeout) for ranks in [*rows, *columns]}
    row, column = (next(tuple(r) for r in part if rank in r) for part in (rows, columns))
    return Grid(rank, workers, replicas, groups[row], groups[column], timeout)


def _group(ranks: list[int], timeout: datetime.timedelta) -> Any:
    """Return a new group; to a process that is no member of it, a number that stands for none."""
    return dist.new_group(ranks, timeout=timeout)
