"""Shards, the row groups of Parquet files: what there is, and the rows of one.

Only a shard's number of rows is kept, so that an order finds the rows of any step without looking
at those before it.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykb.data.parquet import check_schema, check_size, named_errors, parquet_files, whole_numbers

_CACHE_BYTES = 96 * 2**20


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
        check_size(path)
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


class _Tables:
    """Ids and images of shards; those read last are kept while they are small."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Shard, pa.Table] = OrderedDict()
        self._bytes = 0

    def __call__(self, shard: Shard) -> pa.Table:
        """Return the table of a shard.

        Raises:
            ValueError: its file cannot be read, or is not as it was when the shards were found.
        """
        if shard in self._kept:
            self._kept.move_to_end(shard)
            return self._kept[shard]
        table = self._kept[shard] = _read(shard)
        self._bytes += table.nbytes
        while len(self._kept) > 1 and self._bytes > _CACHE_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return table


read_shard = _Tables()


def _read(shard: Shard) -> pa.Table:
    path = Path(shard.path)
    with named_errors(path):
        state = path.stat()
        metadata = _metadata(path, state.st_mtime_ns, state.st_size)
        there = shard.group < metadata.num_row_groups
        if there and metadata.row_group(shard.group).num_rows == shard.count:
            with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
                return file.read_row_group(shard.group, columns=["id", "image"])
    raise ValueError(
        f"{path}: row group {shard.group} has not the {shard.count} rows any more that it had when "
        "the training began. Put the file back as it was, or start a new run"
    )


@functools.lru_cache(maxsize=128)
def _metadata(path: Path, changed_ns: int, size: int) -> pq.FileMetaData:
    """Return what a file's end says of its row groups: long where they are many and small."""
    return pq.read_metadata(path)
