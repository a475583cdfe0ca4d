"""A data set before its images are decoded: choose rows first, pay for decoding after.

A source (:mod:`raykb.data.datasets`) returns its training and test :class:`Records`,
:class:`raykb.data.options.Options` selects some of their rows, and :func:`raykb.data.loading.load`
decodes these.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raykb.data.decoding import Encoded
from raykb.engine.foreign import printable

_LONGEST = 200  # signs of a class's name: MLflow's figures have names of 250


@dataclass(frozen=True, eq=False)
class Records:
    """N labelled images, not decoded yet.

    Attributes:
        rows: (N,) positions in the source, ascending.
        labels: (N,) int64.
        ids: (N,) int64.
        classes: names of the classes, in the order of the labels.
        read: yields the images of such rows, in that order.
        origin: says in words where a row is from, for messages.
        caption: says what the image of a row shows; None where nobody wrote that.

    Raises:
        ValueError: there are none, or labels have no class, or ids are not unique, the rows of
            which are counted and the first of them named; or a class has no plain name.
    """

    rows: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    read: Callable[[np.ndarray], Iterable[Encoded]]
    origin: Callable[[int], str]
    caption: Callable[[int], str] | None = None

    def __post_init__(self) -> None:
        if not len(self):
            raise ValueError("the data set has no images; there must be at least one")
        classless = (self.labels < 0) | (self.labels >= len(self.classes))
        repeated = np.ones(len(self), bool)
        repeated[np.unique(self.ids, return_index=True)[1]] = False
        problems = [
            f"{self.origin(int(self.rows[i]))}: label {self.labels[i]} is not in "
            f"0..{len(self.classes) - 1}, as there are {len(self.classes)} classes"
            for i in np.flatnonzero(classless)
        ] + [
            f"{self.origin(int(self.rows[i]))}: id {self.ids[i]} is taken by an earlier row"
            for i in np.flatnonzero(repeated)
        ]
        check_names(self.classes)
        if problems:
            raise ValueError(f"{len(problems)} labels or ids are wrong:{bullets(problems)}")

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: np.ndarray) -> "Records":
        """Return the records at ``indices``, ascending positions among these."""
        return replace(
            self, rows=self.rows[indices], labels=self.labels[indices], ids=self.ids[indices]
        )

    def keep_classes(self, labels: Sequence[int]) -> "Records":
        """Return the records of the classes ``labels``, numbered anew in the order given."""
        numbers = np.full(len(self.classes), -1, np.int64)
        numbers[list(labels)] = np.arange(len(labels))
        kept = self.subset(np.flatnonzero(numbers[self.labels] >= 0))
        names = tuple(self.classes[label] for label in labels)
        return replace(kept, labels=numbers[kept.labels], classes=names)


def array_records(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], name: str
) -> Records:
    """Return the records of pixels (N, H, W) or (N, H, W, 3); positions become ids."""
    rows = np.arange(len(labels))
    return Records(
        rows,
        labels.astype(np.int64),
        rows,
        tuple(classes),
        lambda rows: images[rows],
        lambda row: f"{name}, image {row}",
    )


def check_names(classes: Sequence[str]) -> None:
    """Raise ValueError unless each name can stand in a table and be that of a figure."""
    strange = [name for name in classes if not name.isprintable() or len(name) > _LONGEST]
    if strange:
        raise ValueError(
            f"{len(strange)} classes have names that do not print, or of more than {_LONGEST} "
            f"signs:{bullets([ascii(name[:_LONGEST]) for name in strange])}\nRename them"
        )


def bullets(lines: Sequence[str], *, shown: int = 10) -> str:
    """Return the first lines as a list, each on a line of its own; none steers a terminal."""
    more = ["..."] if len(lines) > shown else []
    return "".join(f"\n  - {printable(line)}" for line in [*lines[:shown], *more])
