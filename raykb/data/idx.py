"""The IDX files of MNIST and its kin: a header of big-endian integers, then bytes.

Header: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each
dimension as 32 bits.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raykb.data.records import Records, array_records

_UNSIGNED_BYTE = 8


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of an IDX file, plain or gzipped.

    Raises:
        ValueError: it is no IDX file of unsigned bytes, or it is cut short.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
        zero, kind, dimensions = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path}: cannot be read as an IDX file: {error}") from error
    offset = 4 + 4 * dimensions
    if zero != 0 or kind != _UNSIGNED_BYTE or len(data) != offset + math.prod(shape):
        raise ValueError(
            f"{path}: not a whole IDX file of unsigned bytes: its header says type {kind} and "
            f"shape {shape}, and {len(data) - offset} bytes follow"
        )
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)


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
