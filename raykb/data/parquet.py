"""Images in Parquet shards: int64 ``id``, binary ``image`` (a file's bytes), int64 ``label``.

A column ``caption`` of text may say what each shows. The names of the classes stand in the
schema's metadata as a JSON list under ``classes``. Every page carries a checksum, which is verified
when it is read.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykb.data.atomic import whole_file
from raykb.data.decoding import Encoded
from raykb.data.records import Records, bullets
from raykb.engine.foreign import parsed

_SCHEMA = pa.schema([("id", pa.int64()), ("image", pa.binary()), ("label", pa.int64())])
Row = tuple[int, bytes, int] | tuple[int, bytes, int, str]
"""Id, image and label of a row that is written, and its caption if there are captions."""

MOST_BYTES = 2**31
"""Of a row group, as it is when it is read."""

_READABLE: dict[str, Callable[[pa.DataType], bool]] = {
    "id": pa.types.is_integer,
    "image": lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
    "label": pa.types.is_integer,
}


@dataclass(frozen=True)
class _Shard:
    """One file and the positions of its first row and the row after its last."""

    path: Path
    start: int
    end: int

    def images(self, rows: np.ndarray) -> Iterator[bytes | None]:
        """Yield the images of ``rows``, ascending positions in this shard."""
        start = self.start
        with (
            named_errors(self.path),
            pq.ParquetFile(self.path, page_checksum_verification=True) as file,
        ):
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)] - start
                if len(wanted):
                    table = file.read_row_group(group, columns=["image"])
                    yield from table.column("image").take(pa.array(wanted)).to_pylist()
                start = end


def parquet_records(paths: str | Sequence[str], classes: Sequence[str] | None = None) -> Records:
    """Return the records of Parquet files; only ids and labels are read at once.

    Args:
        paths: files, or folders of ``*.parquet`` files.
        classes: names of the classes, with which those in the files must agree; where neither are
            given they are numbered.

    Raises:
        ValueError: a file is not of this layout, or a label has no class; file and rows are named.
        FileNotFoundError: a path does not exist or holds no shard.
    """
    shards: list[_Shard] = []
    columns: dict[str, list[np.ndarray]] = {"id": [], "label": []}
    captions: list[str | None] = []
    named = {tuple(classes): "the names given, or those of the training set"} if classes else {}
    start = 0
    for path in parquet_files([paths] if isinstance(paths, str) else paths):
        table, names = _read_columns(path)
        for name, column in columns.items():
            column.append(whole_numbers(path, table, name))
        captions += table.column("caption").to_pylist() if "caption" in table.column_names else ()
        if names:
            named.setdefault(names, str(path))
        shards.append(_Shard(path, start, start := start + len(table)))
    if len(named) > 1:
        differing = [f"{origin}: {list(names)}" for names, origin in named.items()]
        raise ValueError(f"the classes must be the same everywhere:{bullets(differing)}")
    if not start:
        raise ValueError(f"{', '.join(str(shard.path) for shard in shards)}: no rows")
    ids, labels = (np.concatenate(columns[name]) for name in ("id", "label"))
    numbered = map(str, range(min(labels.max() + 1, len(labels))))
    ends = [shard.end for shard in shards]

    def origin(row: int) -> str:
        shard = shards[int(np.searchsorted(ends, row, side="right"))]
        return f"{shard.path}, row {row - shard.start}"

    def read(rows: np.ndarray) -> Iterator[Encoded]:
        for shard in shards:
            inside = slice(np.searchsorted(rows, shard.start), np.searchsorted(rows, shard.end))
            if inside.stop > inside.start:
                yield from shard.images(rows[inside])

    def caption(row: int) -> str:
        return captions[row] or ""

    return Records(
        np.arange(len(ids)),
        labels,
        ids,
        next(iter(named), tuple(numbered)),
        read,
        origin,
        caption if len(captions) == len(ids) else None,
    )


def parquet_files(paths: Sequence[str]) -> list[Path]:
    """Return the Parquet files among and in ``paths``, those of a folder by name.

    Raises:
        FileNotFoundError: a path does not exist or holds no Parquet file, or what it holds under
            such a name is no file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = parquet_in(path) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise FileNotFoundError(
                f"{path}: must be a Parquet file or a folder of *.parquet files; "
                "pipelines/prepare_data.py makes one"
            )
        files += found
    if not files:
        raise FileNotFoundError("no Parquet file is given; name files or folders of them")
    for file in files:
        if not file.is_file():
            what = "a folder" if file.is_dir() else "a link to nothing"
            raise FileNotFoundError(
                f"{file}: is {what}, must be a Parquet file; take it away, or name the others"
            )
    return files


def parquet_in(folder: Path) -> list[Path]:
    """Return what is named ``*.parquet`` in a folder, by name.

    Names that begin with . or _ are passed over, as pyarrow and Spark do: they are no data.
    """
    return sorted(path for path in folder.glob("*.parquet") if path.name[0] not in "._")


def _read_columns(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """Return ids and labels of a file and the names of its classes, or () where it has none."""
    with named_errors(path):
        check_size(path)
        schema = pq.read_schema(path)
    check_schema(path, schema, tuple(_READABLE))
    with named_errors(path):
        wanted = [name for name in ("id", "label", "caption") if name in schema.names]
        table = pq.read_table(path, columns=wanted, page_checksum_verification=True)
        return table, _class_names(schema)


def named_classes(path: str | Path) -> tuple[str, ...]:
    """Return the names of the classes that stand in a file, or () where it has none."""
    path = Path(path)
    with named_errors(path):
        return _class_names(pq.read_schema(path))


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    names = parsed((schema.metadata or {}).get(b"classes", b"[]"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its metadata name the classes {names!r}, must be a list of names")
    return tuple(names)


def whole_numbers(path: Path, table: pa.Table, name: str) -> np.ndarray:
    """Return a column of a file as (N,) int64.

    Raises:
        ValueError: a cell is empty, or its number is above those of int64.
    """
    column = table.column(name)
    if column.null_count:
        raise ValueError(f"{path}: column '{name}' has empty cells; every image needs one")
    try:
        numbers: np.ndarray = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: column '{name}' is no int64: {error}; renumber it") from error
    return numbers


def check_size(path: Path) -> None:
    """Refuse a file that would take memory out of proportion to its size, before it does.

    Ids that follow each other, and images that are all alike, compress to next to nothing.

    Raises:
        ValueError: it has more rows than bytes, or row groups of more than :data:`MOST_BYTES`.
    """
    metadata, size = pq.read_metadata(path), path.stat().st_size
    if metadata.num_rows > size:
        raise ValueError(f"says that it has {metadata.num_rows} rows, in {size} bytes")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if (largest := max((group.total_byte_size for group in groups), default=0)) > MOST_BYTES:
        raise ValueError(
            f"has a row group of {largest} bytes, must be at most {MOST_BYTES}, for it is read at "
            "once; write it again in smaller ones"
        )


def check_schema(path: Path, schema: pa.Schema, names: Sequence[str]) -> None:
    """Raise ValueError unless ``schema`` has the columns ``names`` of this layout."""
    problems = [
        f"column '{name}' is {schema.field(name).type if name in schema.names else 'missing'},"
        f" must be {_SCHEMA.field(name).type}"
        for name in names
        if name not in schema.names or not _READABLE[name](schema.field(name).type)
    ]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}. It has {schema.names}")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Say of which file an error in reading is."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error


def write_shards(
    folder: Path,
    rows: Iterable[Row],
    classes: Sequence[str],
    *,
    shard_bytes: int = 32 * 2**20,
) -> list[Path]:
    """Write rows as ``folder/00000.parquet``, ... and return the paths.

    A shard is closed by the image that fills it up to ``shard_bytes``. It appears under its name
    only when it is whole and on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    pending: list[Row] = []
    filled = 0

    def close() -> None:
        shards.append(folder / f"{len(shards):05d}.parquet")
        _write_shard(shards[-1], pending, classes)
        pending.clear()

    for row in rows:
        pending.append(row)
        filled += len(row[1])
        if filled >= shard_bytes:
            close()
            filled = 0
    if pending:
        close()
    return shards


def _write_shard(path: Path, rows: Sequence[Row], classes: Sequence[str]) -> None:
    fields = [*_SCHEMA, pa.field("caption", pa.string())][: len(rows[0])]
    schema = pa.schema(fields, metadata={"classes": json.dumps(list(classes))})
    table = pa.table(dict(zip(schema.names, zip(*rows, strict=True), strict=True)), schema=schema)
    with whole_file(path) as file:
        pq.write_table(
            table, file, compression="zstd", use_dictionary=False, write_page_checksum=True
        )
