"""The order in which unlabelled rows are seen: a plan that says which rows any step takes.

    epoch   the shards in an order permuted by (seed, epoch), some of them at a time as a pool, and
            the rows of a pool permuted by (seed, epoch, its first shard)
    step    the next ``batch_size`` rows; ranks take slices of them, so that one rank and several
            see the same rows at each step
    tail    the rows that fill no batch are left out; they are others in each epoch

A shard is a row group of a Parquet file. Only its number of rows is kept, so that the rows of any
step are found without looking at those before it: to resume is to ask for another step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from raykb.data.parquet import check_schema, named_errors, parquet_files, whole_numbers
from raykb.engine.seeding import generator


@dataclass(frozen=True)
class Shard:
    """A row group: its file, number there, first row in the file, and number of rows."""

    path: str
    group: int
    start: int
    count: int


def find_shards(paths: str | Sequence[str]) -> tuple[list[Shard], np.ndarray]:
    """Return the row groups of Parquet files, and the ids of their rows in file order.

    Args:
        paths: files, or folders of ``*.parquet`` files; columns ``id`` and ``image`` are needed,
            of which only the ids are read.

    Raises:
        FileNotFoundError: a path does not exist or holds no Parquet file.
        ValueError: a file is not of this layout or empty, or an id is missing or occurs twice.
    """
    shards: list[Shard] = []
    ids: list[np.ndarray] = []
    for path in parquet_files([paths] if isinstance(paths, str) else paths):
        ids.append(_read_ids(path))
        start = 0
        with named_errors(path), pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if count:
                    shards.append(Shard(str(path.resolve()), group, start, count))
                start += count
    if not shards:
        raise ValueError(f"{paths}: no rows; there must be at least one image")
    every = np.concatenate(ids)
    values, counts = np.unique(every, return_counts=True)
    if len(values) < len(every):
        repeated = int(values[counts > 1][0])
        places = np.flatnonzero(every == repeated)[:2]
        raise ValueError(
            f"{int((counts > 1).sum())} ids occur more than once; as {repeated} in "
            f"{' and in '.join(_place(shards, int(place)) for place in places)}. An id names one "
            "image: renumber them, or name each file once"
        )
    return shards, every


def _read_ids(path: Path) -> np.ndarray:
    with named_errors(path):
        schema = pq.read_schema(path)
    check_schema(path, schema, ("id", "image"))
    with named_errors(path):
        table = pq.read_table(path, columns=["id"], page_checksum_verification=True)
    return whole_numbers(path, table, "id")


def _place(shards: Sequence[Shard], position: int) -> str:
    """Return file and row of a position among all rows."""
    for shard in shards:
        if position < shard.count:
            break
        position -= shard.count
    return f"{shard.path}, row {shard.start + position}"


class Order:
    """Which rows each step takes.

    Args:
        shards: row groups, in file order.
        batch_size: rows of one step, over all ranks.
        seed: of the order.
        mix_shards: shards whose rows are permuted together; more of them mix files that are sorted
            by class, and are read as often more.
    """

    def __init__(
        self, shards: Sequence[Shard], *, batch_size: int, seed: int, mix_shards: int = 1
    ) -> None:
        self.shards = tuple(shards)
        self.count = sum(shard.count for shard in shards)
        if not 1 <= batch_size <= self.count:
            raise ValueError(
                f"batch_size: {batch_size} unlabelled images of each step; must be from 1 to the "
                f"{self.count} that there are"
            )
        if mix_shards < 1:
            raise ValueError(f"mix_shards: {mix_shards}; must be at least 1")
        self.batch_size = batch_size
        self._seed = seed
        self._mix = mix_shards
        self._epoch = -1
        self._pools: list[np.ndarray] = []  # numbers of the shards of each pool
        self._ends = np.empty(0, np.int64)  # rows up to the end of each pool
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epoch": -1, "_rows": {}}  # what is soon found again stays here

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one pass over the rows."""
        return self.count // self.batch_size

    def slice(self, rank: int, size: int) -> slice:
        """Return which rows of a step's are those of a rank.

        Raises:
            ValueError: the batch does not divide by the number of ranks, or there is no such rank.
        """
        if size < 1 or self.batch_size % size:
            raise ValueError(
                f"batch_size: {self.batch_size} unlabelled images of each step do not divide by "
                f"{size} workers; it is the number over all of them"
            )
        if not 0 <= rank < size:
            raise ValueError(f"rank: {rank}; must be in 0..{size - 1}")
        share = self.batch_size // size
        return slice(rank * share, (rank + 1) * share)

    def rows(self, step: int, rank: int = 0, size: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return what a rank takes at a step: shard numbers and rows in the shard, (n,) each."""
        share = self.slice(rank, size)
        self._open(step // self.steps_per_epoch)
        first = step % self.steps_per_epoch * self.batch_size
        start, stop = first + share.start, first + share.stop
        pool = int(np.searchsorted(self._ends, start, side="right"))
        parts = []
        while start < stop:
            end = int(self._ends[pool])
            begin = end - len(self._permuted(pool)[0])
            parts.append([c[start - begin : stop - begin] for c in self._permuted(pool)])
            start, pool = end, pool + 1
        shards, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        return shards, rows

    def _open(self, epoch: int) -> None:
        """Put the shards into the order of ``epoch``."""
        if epoch == self._epoch:
            return
        order = torch.randperm(
            len(self.shards), generator=generator(self._seed, "shards", epoch)
        ).numpy()
        self._pools = [order[i : i + self._mix] for i in range(0, len(order), self._mix)]
        counts = [sum(self.shards[number].count for number in pool) for pool in self._pools]
        self._ends, self._rows, self._epoch = np.cumsum(counts), {}, epoch

    def _permuted(self, pool: int) -> tuple[np.ndarray, np.ndarray]:
        """Return shard numbers and rows of all of a pool, permuted."""
        if pool not in self._rows:
            numbers = self._pools[pool]
            counts = [self.shards[number].count for number in numbers]
            owners = np.repeat(numbers, counts)
            rows = np.concatenate([np.arange(count) for count in counts])
            named = generator(self._seed, "rows", self._epoch, int(numbers[0]))
            order = torch.randperm(len(rows), generator=named).numpy()
            for old in list(self._rows)[:-1]:  # a batch lies in two pools, hardly ever in more
                del self._rows[old]
            self._rows[pool] = owners[order], rows[order]
        return self._rows[pool]
