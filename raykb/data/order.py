"""Orders: which rows any step sees, and of which epoch, as a function of (seed, step).

    Shuffled   epoch after epoch, each permuted and cut into batches of its own
    Endless    the same without cuts between epochs: a batch may reach over several
    ByShard    epoch after epoch, files one after another: for rows that are read from them

To resume is to ask for another step. All sizes of a batch are those over all ranks, and ranks see
together what one would see.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raykb.data.source import Rows
from raykb.engine.arguments import at_least, check_settings
from raykb.engine.seeding import generator


@dataclass(frozen=True)
class Shuffled:
    """A permutation keyed by (seed, epoch), cut into batches; ranks take every ``size``-th row.

    Attributes:
        count: number of rows.
        batch_size: rows of a step; where there are fewer in all, these are a batch.
        seed: of the order.
        keep_last: see the last, smaller batch of an epoch too; else it is left out, and with it
            other rows in each epoch.
    """

    count: int
    batch_size: int
    seed: int
    keep_last: bool = False

    def __post_init__(self) -> None:
        check_settings(self, count=at_least(1), batch_size=at_least(1))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the rows."""
        whole = self.count // self.batch_size
        return max(1, -(-self.count // self.batch_size) if self.keep_last else whole)

    def at(self, step: int, rank: int = 0, size: int = 1) -> Rows:
        """Return the rows of a step for a rank."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = _permutation(self.count, self.seed, "order", epoch)
        rows = order[number * self.batch_size : (number + 1) * self.batch_size][rank::size]
        return Rows(rows, np.full(len(rows), epoch))

    def batch(self, step: int) -> int:
        """Return the number of rows of a step over all ranks."""
        first = step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.count - first)


@dataclass(frozen=True)
class Endless:
    """Permutations keyed by (seed, epoch), one after another, cut into batches of one size.

    A batch may reach over the end of an epoch, or over several: rows may be fewer than it has.
    Ranks take every ``size``-th row.

    Attributes:
        count: number of rows.
        batch_size: rows of a step.
        seed: of the order.
    """

    count: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        check_settings(self, count=at_least(1), batch_size=at_least(1))

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every row at least once, were they to begin with an epoch."""
        return -(-self.count // self.batch_size)

    def at(self, step: int, rank: int = 0, size: int = 1) -> Rows:
        """Return the rows of a step for a rank; their epochs do not descend."""
        numbers = step * self.batch_size + np.arange(rank, self.batch_size, size)
        epochs, places = np.divmod(numbers, self.count)
        rows = np.empty(len(numbers), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = _permutation(self.count, self.seed, "labelled order", epoch)[places[here]]
        return Rows(rows, epochs)

    def batch(self, step: int) -> int:
        """Return the number of rows of a step over all ranks."""
        return self.batch_size


@functools.lru_cache(maxsize=4)  # two feeds, a batch of each of which lies in two epochs at most
def _permutation(count: int, seed: int, stream: str, epoch: int) -> np.ndarray:
    order: np.ndarray = torch.randperm(count, generator=generator(seed, stream, epoch)).numpy()
    order.setflags(write=False)
    return order


class ByShard:
    """Shard after shard, permuted, so that what is read for a step lies together.

        epoch   the shards in an order permuted by (seed, epoch), some of them at a time as a pool,
                and the rows of a pool permuted by (seed, epoch, its first shard)
        step    the next ``batch_size`` rows; ranks take slices of them
        tail    the rows that fill no batch are left out; they are others in each epoch

    Args:
        counts: (S,) rows of each shard; its rows are numbered after those of the shards before.
        batch_size: rows of a step.
        seed: of the order.
        mix_shards: shards whose rows are permuted together; more of them mix files that are sorted
            by class, and are read as often more.
    """

    def __init__(
        self, counts: Sequence[int] | np.ndarray, *, batch_size: int, seed: int, mix_shards: int = 1
    ) -> None:
        self._ends = np.cumsum(counts)  # (S,)
        self._starts = self._ends - counts  # (S,)
        self.count = int(self._ends[-1])
        if not 1 <= batch_size <= self.count:
            raise ValueError(
                f"batch_size: {batch_size} rows of each step; must be from 1 to the {self.count} "
                "that there are"
            )
        if mix_shards < 1:
            raise ValueError(f"mix_shards: {mix_shards}; must be at least 1")
        self.batch_size = batch_size
        self._seed = seed
        self._mix = mix_shards
        self._epoch = -1
        self._pools: list[np.ndarray] = []  # numbers of the shards of each pool
        self._pool_ends = np.empty(0, np.int64)  # rows up to the end of each pool
        self._rows: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epoch": -1, "_rows": {}}  # what is soon found again stays here

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one pass over the rows."""
        return self.count // self.batch_size

    def batch(self, step: int) -> int:
        """Return the number of rows of a step over all ranks."""
        return self.batch_size

    def at(self, step: int, rank: int = 0, size: int = 1) -> Rows:
        """Return the rows of a step for a rank.

        Raises:
            ValueError: the batch does not divide by the number of ranks, or there is no such rank.
        """
        share = self._share(rank, size)
        epoch, number = divmod(step, self.steps_per_epoch)
        self._open(epoch)
        start = number * self.batch_size + rank * share
        stop = start + share
        pool = int(np.searchsorted(self._pool_ends, start, side="right"))
        parts = []
        while start < stop:
            end, permuted = int(self._pool_ends[pool]), self._permuted(pool)
            begin = end - len(permuted)
            parts.append(permuted[start - begin : stop - begin])
            start, pool = end, pool + 1
        return Rows(np.concatenate(parts), np.full(share, epoch))

    def _share(self, rank: int, size: int) -> int:
        """Return the rows of a step for each rank."""
        if size < 1 or self.batch_size % size:
            raise ValueError(
                f"batch_size: {self.batch_size} rows of each step do not divide by {size} workers; "
                "it is the number over all of them"
            )
        if not 0 <= rank < size:
            raise ValueError(f"rank: {rank}; must be in 0..{size - 1}")
        return self.batch_size // size

    def _open(self, epoch: int) -> None:
        """Put the shards into the order of ``epoch``."""
        if epoch == self._epoch:
            return
        order = torch.randperm(
            len(self._ends), generator=generator(self._seed, "shards", epoch)
        ).numpy()
        self._pools = [order[i : i + self._mix] for i in range(0, len(order), self._mix)]
        sizes = [int((self._ends - self._starts)[pool].sum()) for pool in self._pools]
        self._pool_ends, self._rows, self._epoch = np.cumsum(sizes), {}, epoch

    def _permuted(self, pool: int) -> np.ndarray:
        """Return the rows of all of a pool, permuted."""
        if pool not in self._rows:
            numbers = self._pools[pool]
            rows = np.concatenate([np.arange(self._starts[n], self._ends[n]) for n in numbers])
            named = generator(self._seed, "rows", self._epoch, int(numbers[0]))
            order = torch.randperm(len(rows), generator=named).numpy()
            for old in list(self._rows)[:-1]:  # a batch lies in two pools, hardly ever in more
                del self._rows[old]
            self._rows[pool] = rows[order]
        return self._rows[pool]
