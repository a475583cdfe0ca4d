"""The IDX files of MNIST and its kin: a header of big-endian integers, then bytes.

Header: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each
dimension as 32 bits.
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raykb.data.records import Records, array_records
from raykb.engine.foreign import MOST_INFLATED

_File = gzip.GzipFile | io.BufferedReader
_UNSIGNED_BYTE = 8
_MOST_DIMENSIONS = 4
_MOST_BYTES = 2**31
_BLOCK_BYTES = 2**20


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of an IDX file, plain or gzipped.

    No more is inflated than the header says, and the header is believed only as far as the size of
    the file allows it, and up to 2 GiB.

    Raises:
        ValueError: it is no IDX file of unsigned bytes, it is cut short, or it is too large.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            array = np.empty(_shape(path, file), np.uint8)
            read = _read_into(file, array)
            more = file.read(1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path}: cannot be read as an IDX file: {error}") from error
    if read < array.size or more:
        follow = f"{read} bytes follow" if read < array.size else "more follows"
        raise ValueError(
            f"{path}: not a whole IDX file: its header says shape {array.shape}, and {follow}"
        )
    return array


def _shape(path: Path, file: _File) -> tuple[int, ...]:
    """Read the header; refuse what is no such file, or cannot be what it says."""
    zero, kind, dimensions = struct.unpack(">HBB", file.read(4))
    if zero != 0 or kind != _UNSIGNED_BYTE or dimensions > _MOST_DIMENSIONS:
        raise ValueError(
            f"{path}: not an IDX file of unsigned bytes: its header says type {kind} and "
            f"{dimensions} dimensions after {zero}; must be type {_UNSIGNED_BYTE} and at most "
            f"{_MOST_DIMENSIONS} dimensions after 0"
        )
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
    size, packed = math.prod(shape), path.stat().st_size
    if size > (most := packed * (MOST_INFLATED if path.suffix == ".gz" else 1)):
        raise ValueError(
            f"{path}: not a whole IDX file: its header says shape {shape}, and a file of {packed} "
            f"bytes holds {most} at most"
        )
    if size > _MOST_BYTES:
        raise ValueError(
            f"{path}: shape {shape}, which are {size} bytes; at most {_MOST_BYTES} are read of an "
            "IDX file: split it, or keep such a set as Parquet shards"
        )
    return shape


def _read_into(file: _File, array: np.ndarray) -> int:
    """Fill an array from a file, as far as that goes; return the bytes that there were."""
    flat, done = array.reshape(-1).data, 0
    while block := file.read(min(_BLOCK_BYTES, array.size - done)):
        flat[done : done + len(block)] = block
        done += len(block)
    return done


def idx_path(root: Path, name: str) -> Path | None:
    """Return the path of an IDX file in ``root``, plain or gzipped, if it is there."""
    return next((path for end in ("", ".gz") if (path := root / (name + end)).is_file()), None)


def idx_records(root: Path, part: str, classes: Sequence[str] | None) -> Records:
    """Return the records of ``root/<part>-images-idx3-ubyte`` and its labels.

    Args:
        root: the folder of the files, plain or gzipped.
        part: ``train`` or ``t10k``.
        classes: names of the classes; ``None`` numbers them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or images and labels differ in number.
    """
    paths = [idx_path(root, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    if None in paths:
        raise FileNotFoundError(
            f"{root}: must hold {part}-images-idx3-ubyte and {part}-labels-idx1-ubyte, "
            "plain or with the ending .gz"
        )
    images, labels = (read_idx(path) for path in paths if path is not None)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{root}: the {part} images have shape {images.shape} and the labels {labels.shape}; "
            "must be (N, H, W) and (N,)"
        )
    labels = labels.astype(np.int64)
    names = classes or [str(label) for label in range(labels.max(initial=-1) + 1)]
    return array_records(images, labels, names, str(paths[0]))
