"""Folders of image files, one folder per class, as ImageNet is kept."""

from pathlib import Path

import numpy as np

from raykb.data.decoding import Encoded
from raykb.data.records import Records

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def folder_records(folder: Path) -> Records:
    """Return the records of ``folder/<class>/**/<image>``; the classes are in sorted order.

    An image's id is its position in the sorted listing. The rows are in a fixed random order, so
    that a part of them, and later a shard, is not of one class only.

    Raises:
        FileNotFoundError: the folder, its class folders or the images in one of them are missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: must be a folder that holds one folder per class")
    classes = sorted(entry for entry in folder.iterdir() if _is_class(entry))
    listing = [image_files(entry) for entry in classes]
    empty = [str(entry) for entry, images in zip(classes, listing, strict=True) if not images]
    if empty or not classes:
        raise FileNotFoundError(
            f"{folder}: no images in {', '.join(empty) or 'it, nor any folder of a class'}; must "
            f"hold <class>/<image>, the image ending in {' '.join(_SUFFIXES)}"
        )
    paths = [path for images in listing for path in images]
    labels = np.repeat(np.arange(len(classes)), [len(images) for images in listing])
    ids = np.random.default_rng(0).permutation(len(paths))

    def read(rows: np.ndarray) -> list[Encoded]:
        return [paths[position] for position in ids[rows]]

    return Records(
        np.arange(len(paths)),
        labels[ids],
        ids,
        tuple(entry.name for entry in classes),
        read,
        lambda row: str(paths[ids[row]]),
    )


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and in all folders below it, sorted.

    Names that begin with a dot, and what is in folders of such names, are passed over.
    """
    named = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    shown = (path for path in named if not _is_hidden(path.relative_to(folder)))
    return sorted(path for path in shown if not path.is_dir())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
