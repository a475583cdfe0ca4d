"""Cases decompressed once into files that are mapped, so that a crop reads what it needs.

    shards/BRATS_001-3f0c…/
        image.npy        (C, Z, Y, X), the numbers of the file
        label.npy        (Z, Y, X) uint8
        foreground.npy   (K, 4) int32: label, z, y, x of voxels that a crop may be put around
        case.json        what is known of it

A shard's name has a digest of what it is made of: paths, sizes and times of the files, the task's
tables, and how the case was prepared. So it is made anew when these change, and never twice: two
processes may ask at once. Shards can be removed between runs.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raykb.data.atomic import make_folder
from raykb.data.decathlon import Case, DecathlonTask, read_case
from raykb.data.nifti import Geometry, Triple
from raykb.engine.foreign import parsed, read_text
from raykb.engine.seeding import stream_seed

_LAYOUT = 1
_POSITIONS = 10_000  # of each label, as nnU-Net keeps them
_MAPPED = 256  # files; each holds a descriptor, of which a process has 1024 by default

Spacing = tuple[float, float, float]


class Contents(NamedTuple):
    """The arrays of a case, and how far their voxels are apart."""

    image: np.ndarray  # (C, Z, Y, X)
    label: np.ndarray | None  # (Z, Y, X)
    spacing_mm: Spacing  # along Z, Y and X


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to a case before it is stored, as to resample and to normalise it.

    Attributes:
        prepare: makes other arrays of a case's.
        key: stands for all that decides what ``prepare`` does, as the hash of a plan.
    """

    prepare: Callable[[Contents], Contents]
    key: str


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredCase:
    """A case in its shard; it is pickled as what is said here, its arrays stay in their files.

    Attributes:
        name: of the case.
        folder: of the shard.
        shape: Z, Y and X of the arrays.
        channels: of the image.
        dtype: of the image.
        spacing_mm: of the arrays, along Z, Y and X.
        geometry: of the file, which predictions go back to.
        positions: rows of ``foreground`` by label; empty where there is no label.
        labelled: whether there is a label.
    """

    name: str
    folder: Path
    shape: Triple
    channels: int
    dtype: np.dtype
    spacing_mm: Spacing
    geometry: Geometry
    positions: dict[int, int]
    labelled: bool

    @property
    def image(self) -> np.ndarray:
        """The image (C, Z, Y, X), mapped."""
        return _mapped(self.folder / "image.npy")

    @property
    def label(self) -> np.ndarray:
        """The label (Z, Y, X), mapped; raises FileNotFoundError where there is none."""
        return _mapped(self.folder / "label.npy")

    @property
    def foreground(self) -> np.ndarray:
        """Label, z, y and x of voxels, (K, 4) int32, mapped; sorted by label."""
        return _mapped(self.folder / "foreground.npy")


@functools.lru_cache(maxsize=_MAPPED)
def _mapped(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r")
    return array


def store_case(
    task: DecathlonTask, case: Case, shards: Path, *, preparation: Preparation | None = None
) -> StoredCase:
    """Return a case from its shard, which is made if it is not there.

    Args:
        task: what the case is of.
        case: of the task.
        shards: the folder of shards, best on a disk of this node.
        preparation: comes before; None stores the case as its files have it.

    Raises:
        ImportError: nibabel is not installed.
        ConfigError: the case cannot be used; all that is wrong with it is told at once.
    """
    folder = shards / f"{case.name}-{_digest(task, case, preparation)}"
    make_folder(folder, functools.partial(_write, task, case, preparation))
    return _read(case.name, folder)


def _digest(task: DecathlonTask, case: Case, preparation: Preparation | None) -> str:
    """Return what stands for all that decides what is in a shard."""
    files = [path for path in (case.image, case.label) if path is not None]
    states = [(str(path.resolve()), *_state(path)) for path in files]
    tables = [task.modalities, task.labels, "" if preparation is None else preparation.key]
    return hashlib.sha256(json.dumps([_LAYOUT, states, tables]).encode()).hexdigest()[:16]


def _state(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file; zeros where there is none, which is told later."""
    if not path.is_file():
        return 0, 0
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _write(task: DecathlonTask, case: Case, preparation: Preparation | None, folder: Path) -> None:
    image, label, geometry = read_case(task, case)
    contents = Contents(image, label, geometry.spacing_mm)
    if preparation is not None:
        contents = preparation.prepare(contents)
    foreground = _foreground(case.name, contents.label)
    labels, counts = np.unique(foreground[:, 0], return_counts=True)
    np.save(folder / "image.npy", np.ascontiguousarray(contents.image))
    np.save(folder / "foreground.npy", foreground)
    if contents.label is not None:
        np.save(folder / "label.npy", np.ascontiguousarray(contents.label))
    known = {
        "shape": contents.image.shape[1:],
        "channels": len(contents.image),
        "dtype": contents.image.dtype.name,
        "spacing_mm": contents.spacing_mm,
        "file_shape": geometry.file_shape,
        "affine": geometry.affine.tolist(),
        "positions": list(zip(labels.tolist(), counts.tolist(), strict=True)),
        "labelled": contents.label is not None,
    }
    (folder / "case.json").write_text(json.dumps(known, indent=1), encoding="utf-8")


def _foreground(name: str, label: np.ndarray | None) -> np.ndarray:
    """Return label, z, y and x of voxels of each label but 0, some of them where there are many."""
    if label is None:
        return np.empty((0, 4), np.int32)
    flat = np.flatnonzero(label)
    values = np.ascontiguousarray(label).reshape(-1)[flat]
    draw = np.random.default_rng(stream_seed(0, "foreground", name))
    parts = [np.empty((0, 4), np.int32)]
    for value in np.unique(values):
        found = flat[values == value]
        if len(found) > _POSITIONS:
            found = np.sort(draw.choice(found, _POSITIONS, replace=False))
        places = np.stack(np.unravel_index(found, label.shape), 1)
        parts.append(np.insert(places, 0, value, axis=1).astype(np.int32))
    return np.concatenate(parts)


def _read(name: str, folder: Path) -> StoredCase:
    known = parsed(read_text(folder / "case.json"))
    z, y, x = known["shape"]
    along_z, along_y, along_x = known["spacing_mm"]
    return StoredCase(
        name=name,
        folder=folder.resolve(),
        shape=(z, y, x),
        channels=known["channels"],
        dtype=np.dtype(known["dtype"]),
        spacing_mm=(along_z, along_y, along_x),
        geometry=Geometry(tuple(known["file_shape"]), np.array(known["affine"])),
        positions=dict(known["positions"]),
        labelled=known["labelled"],
    )
