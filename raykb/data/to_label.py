"""Images of a folder or of Parquet files that nobody has labelled, a batch at a time."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from raykb.data.decoding import BadImageError, Encoded, decode_all
from raykb.data.folder import image_files
from raykb.data.parquet import (
    check_schema,
    named_errors,
    parquet_files,
    parquet_in,
    whole_numbers,
)

Batch = tuple[Sequence[int | str], list[Encoded]]
"""Ids or paths of some images, and these."""


class ImagesToLabel:
    """Images to be labelled, a batch at a time.

    Args:
        where: a folder of image files, a Parquet file, or a folder of these.

    Attributes:
        key: what names an image: ``path`` or ``id``.
        count: how many there are.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is both, or a Parquet file is not of this layout.
    """

    def __init__(self, where: Path) -> None:
        if not where.exists():
            raise FileNotFoundError(f"{where}: is not there; name a folder or a Parquet file")
        self._where, self._paths = where, list[Path]()
        self.key = "id" if where.is_file() or any(parquet_in(where)) else "path"
        if self.key == "id":
            if where.is_dir() and image_files(where):
                raise ValueError(
                    f"{where}: holds Parquet files and image files; give each a folder of their own"
                )
            self._files = parquet_files([str(where)])
            self.count = sum(map(_rows, self._files))
        else:
            self._paths = image_files(where)
            self.count = len(self._paths)
        if not self.count:
            raise FileNotFoundError(
                f"{where}: holds no image; there must be image files or *.parquet files in it"
            )

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the images in order, ``size`` at a time."""
        if self.key == "path":
            for first in range(0, self.count, size):
                some = self._paths[first : first + size]
                yield [_text(path.relative_to(self._where)) for path in some], list(some)
            return
        for path in self._files:
            with named_errors(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                for rows in file.iter_batches(size, columns=["id", "image"]):
                    yield rows.column("id").to_pylist(), rows.column("image").to_pylist()


def _text(path: Path) -> str:
    """Return a path as text that can be written: bytes that are no UTF-8 stand there escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _rows(path: Path) -> int:
    with named_errors(path):
        schema = pq.read_schema(path)
    check_schema(path, schema, ("id", "image"))
    with named_errors(path):
        ids = pq.read_table(path, columns=["id"], page_checksum_verification=True)
    return len(whole_numbers(path, ids, "id"))


def decoded_as(
    encoded: Sequence[Encoded], shape: tuple[int, int, int]
) -> list[np.ndarray | BadImageError]:
    """Return each image in the shape (C, H, W) that a network takes, or why it cannot be used."""
    channels, height, width = shape
    side = height if height == width else None
    return [
        image
        if isinstance(image, BadImageError) or image.shape == shape
        else BadImageError(
            f"{image.shape[1]} x {image.shape[2]} pixels, must be {height} x {width} as in "
            "training, since only squares are made of other sizes; scale it"
        )
        for image in decode_all(encoded, image_size=side, channels=channels)
    ]
