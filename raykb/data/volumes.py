"""Volumes as one more kind of examples: a row is a case, and reading one reads no voxel.

A case is hundreds of megabytes and a training wants a patch of it, at a place that the view draws.
Examples are read before the view is asked, and know neither seed nor epoch. So what is read here is
a handle, the case's id; whoever makes the views, a worker or the trainer, crops from the mapped
file of the case and reads the patch alone (:class:`raykb.data.volume_views.PatchView`). Of all that
:class:`raykb.data.source.Source` promises nothing changes: rows are read in workers, chance is a
function of (seed, epoch, id), and what travels to the training is the patch. Handles are ids, which
a selection of cases keeps, and not rows, which it does not.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from raykb.config import Problems
from raykb.data.decathlon import Case, DecathlonTask, label_type
from raykb.data.nifti import Triple, require_nibabel
from raykb.data.source import Read
from raykb.data.volume_shards import Preparation, StoredCase, store_case


@dataclass(frozen=True, eq=False)
class Volumes:
    """N cases of one task, as :class:`raykb.data.source.Examples` with the array ``cases``.

    Attributes:
        cases: in their shards, at the same place on every host.
        ids: (N,) int64, each once.
        classes: names of the labels, with the background; 0 is that.

    Raises:
        ValueError: cases differ in their channels, or only some have a label; they are named.
    """

    cases: tuple[StoredCase, ...]
    ids: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.cases:
            raise ValueError("cases: none, there must be at least one")
        if len(self.ids) != len(self.cases) or len(np.unique(self.ids)) < len(self.ids):
            raise ValueError(
                f"ids: {self.ids.tolist()} of {len(self.cases)} cases, must be one for each"
            )
        for what in ("channels", "labelled"):
            kinds = {getattr(case, what): case.name for case in self.cases}
            if len(kinds) > 1:
                told = ", ".join(f"{kind} as in {name}" for kind, name in kinds.items())
                raise ValueError(f"{what}: {told}; must be the same in all cases")

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def channels(self) -> int:
        """Channels of each image."""
        return self.cases[0].channels

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.cases[0].labelled

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """A type for the numbers of all images, of those that torch computes with."""
        common = np.result_type(*(case.dtype for case in self.cases))
        return np.result_type(common, np.int16) if common.kind == "u" and common != "u1" else common

    @property
    def label_dtype(self) -> np.dtype:
        """The type of all labels."""
        return label_type(len(self.classes))

    @functools.cached_property
    def _rows(self) -> dict[int, int]:
        return {sample: row for row, sample in enumerate(self.ids.tolist())}

    def case(self, sample: int) -> StoredCase:
        """Return the case of an id."""
        return self.cases[self._rows[sample]]

    def read(self, rows: np.ndarray) -> Read:
        """Return the handles ``cases`` (n,) int64 of ``rows``: their ids."""
        ids = self.ids[rows]
        return Read({"cases": ids.copy()}, ids, [""] * len(rows))

    def subset(self, rows: np.ndarray) -> "Volumes":
        """Return the cases at ``rows`` alone, in that order."""
        return Volumes(tuple(self.cases[row] for row in rows), self.ids[rows], self.classes)


def open_volumes(
    task: DecathlonTask,
    shards: Path,
    *,
    part: Literal["training", "test"] = "training",
    preparation: Preparation | None = None,
    workers: int = 1,
) -> Volumes:
    """Return the cases of a task, each read and checked once and then kept in its shard.

    Ids are positions in the sorted list of the part.

    Args:
        task: as :func:`raykb.data.decathlon.read_task` returns it.
        shards: the folder of shards, best on a disk of this node.
        part: cases with labels, or those without.
        preparation: is done to each case before it is stored.
        workers: threads, of which each has a case in memory; unpacking does not hold Python's lock.

    Raises:
        ImportError: nibabel is not installed.
        ConfigError: cases cannot be used: all that is wrong with any of them is told at once. The
            shards of the others are there the next time.
        ValueError: there is no case in this part.
    """
    require_nibabel()
    cases: Sequence[Case] = task.training if part == "training" else task.test
    if not cases:
        raise ValueError(f"part: {part!r}, of which {task.folder} has no case")
    problems = Problems()

    def stored(case: Case) -> StoredCase | None:
        with problems.at(case.name):
            return store_case(task, case, shards, preparation=preparation)
        return None

    with ThreadPoolExecutor(workers) as pool:
        found = [case for case in pool.map(stored, cases) if case is not None]
    problems.refuse(f"{task.folder}: the {part} cases cannot be used")
    return Volumes(tuple(found), np.arange(len(found)), task.labels)


def crop(array: np.ndarray, start: Sequence[int], out: np.ndarray, *, fill: float = 0.0) -> None:
    """Copy a box of an array's last three axes; what of it lies outside is filled.

    Args:
        array: (…, Z, Y, X), mapped or not; the box alone is read of it.
        start: first voxel along each of the three, which may be negative.
        out: (…, z, y, x), which gets the box.
        fill: what is outside.
    """
    axes = zip(start, out.shape[-3:], array.shape[-3:], strict=True)
    (z, of_z), (y, of_y), (x, of_x) = (_overlap(*axis) for axis in axes)
    met = out[..., z, y, x]
    if met.size < out.size:
        out[...] = fill
    met[...] = array[..., of_z, of_y, of_x]


def _overlap(start: int, length: int, most: int) -> tuple[slice, slice]:
    """Return where a box and an axis of 0..most meet: in the box, and on the axis."""
    begin = min(max(start, 0), most)
    end = max(begin, min(start + length, most))
    return slice(begin - start, end - start), slice(begin, end)


def patch_start(
    shape: Triple, size: Triple, uniforms: np.ndarray, around: np.ndarray | None = None
) -> list[int]:
    """Return the first voxel of a patch: anywhere in a volume, or about a voxel of it.

    Where the volume has fewer voxels along an axis than the patch, it lies in the patch's middle.

    Args:
        shape: Z, Y and X of the volume.
        size: of the patch.
        uniforms: (3,) in [0, 1), which place it.
        around: z, y, x of a voxel that is nearest to the middle of the patch as the borders of the
            volume allow; None for none.
    """
    room = np.array(shape) - size
    low, high = np.minimum(room // 2, 0), np.where(room < 0, room // 2, room)
    if around is None:
        start = low + np.floor(uniforms * (high - low + 1)).astype(np.int64)
    else:
        start = np.clip(around - np.array(size) // 2, low, high)
    firsts: list[int] = start.tolist()
    return firsts
