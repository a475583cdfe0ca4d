"""Data of any kind: a source is examples x order x view, with a seed.

    examples   read rows of something (images, series, volumes, pairs, …) as arrays
    order      says which rows a step sees, and of which epoch
    view       turns rows into the batch whose fields an objective names

What a step sees is a function of the source and the step's number alone. A worker *reads* a step,
the training *finishes* it on its device; whoever stands between the two is a
:class:`raykb.data.feed.Feed` and knows neither shapes nor what the rows are.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from raykb.engine.arguments import among, check_settings

Arrays = dict[str, np.ndarray]
"""Columns of some rows by name, numbers with a first axis of n rows."""

Fields = dict[str, Tensor]
"""The same as tensors; what a view makes of them are the fields of a batch."""


class Read(NamedTuple):
    """Some rows, as they were read."""

    arrays: Arrays
    ids: np.ndarray  # (n,) int64
    problems: list[str]  # of each row: why it stands for a broken one, or ""


class Examples(Protocol):
    """N examples of one kind, by row; labelled ones have the names of their ``classes``, too.

    They are pickled into each worker that reads them, so what is large stays in its files.
    """

    @property
    def ids(self) -> np.ndarray:
        """What names each example wherever it travels, (N,) int64, each once."""

    def __len__(self) -> int:
        """Return the number of examples; N."""

    def read(self, rows: np.ndarray) -> Read:
        """Return the examples at ``rows`` (n,), in that order.

        Raises:
            ValueError: one cannot be read and nothing may stand for it; it is named.
        """

    def subset(self, rows: np.ndarray) -> "Examples":
        """Return the examples at ``rows`` alone, in that order."""


class Rows(NamedTuple):
    """Which rows a rank sees at a step, each of which epoch."""

    rows: np.ndarray  # (n,) int64
    epochs: np.ndarray  # (n,) int64


class Order(Protocol):
    """Which rows any step sees, found without those before it."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of about one pass over the rows."""

    def at(self, step: int, rank: int = 0, size: int = 1) -> Rows:
        """Return the rows of a step for one of ``size`` ranks that share them.

        Raises:
            ValueError: they cannot be shared so.
        """

    def batch(self, step: int) -> int:
        """Return the number of rows of a step over all ranks; no step has more than the first."""


class View(Protocol):
    """What a training, and what a test, sees of rows.

    All chance comes from ``seed``, ``epoch`` and ids: neither the batch, nor the worker or device
    that makes a view, can change it.
    """

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return what chance makes of n rows, with a first axis of n; on the arrays' device."""

    def finish(self, arrays: Fields) -> Fields:
        """Return the fields of the batch from those of :meth:`train`; no chance is left.

        It is made on the training's device: what would make rows larger, as floating-point numbers,
        is best done here.
        """

    def plain(self, arrays: Fields) -> Fields:
        """Return the test form of rows that were read."""


class Piece(NamedTuple):
    """A rank's share of a step, on its way from who reads it to who finishes it."""

    arrays: Fields
    ids: np.ndarray  # (n,) int64
    epochs: np.ndarray  # (n,) int64
    problems: list[str]  # (n,)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        arrays = sum(array.nbytes for array in self.arrays.values())
        return arrays + self.ids.nbytes + self.epochs.nbytes


@dataclass(frozen=True, eq=False)
class Source:
    """What a training sees, as a function of the step.

    Attributes:
        examples: what there is.
        order: which rows of it a step sees.
        view: what becomes of them.
        seed: of the view.
        views_by: who makes views: the ``workers`` that read, or the ``trainer`` on its device.
    """

    examples: Examples
    order: Order
    view: View
    seed: int
    views_by: Literal["workers", "trainer"] = "workers"

    def __post_init__(self) -> None:
        check_settings(self, views_by=among("workers", "trainer"))

    def read(self, step: int, rank: int = 0, size: int = 1) -> Piece:
        """Return a rank's share of a step as the workers hand it over."""
        return self._read(self.order.at(step, rank, size))

    def finish(self, piece: Piece, device: torch.device) -> Fields:
        """Return the batch, on ``device``."""
        arrays = {name: array.to(device) for name, array in piece.arrays.items()}
        if self.views_by == "trainer":
            arrays = self._viewed(arrays, piece.ids, piece.epochs)
            arrays = {name: array.to(device) for name, array in arrays.items()}  # as ids are not
        return self.view.finish(arrays)

    def step_bytes(self, step: int, rank: int = 0, size: int = 1) -> int:
        """Return the bytes of :meth:`read` at most, as a row of ``step`` that is read has them."""
        rows, epochs = self.order.at(step, rank, size)
        of_a_row = self._read(Rows(rows[:1], epochs[:1])).nbytes
        return of_a_row * -(-self.order.batch(0) // size)  # no batch is larger than the first

    def _read(self, which: Rows) -> Piece:
        found, ids, problems = self.examples.read(which.rows)
        arrays = {name: torch.from_numpy(array) for name, array in found.items()}
        if self.views_by == "workers":
            arrays = self._viewed(arrays, ids, which.epochs)
        return Piece(arrays, ids, which.epochs, problems)

    def _viewed(self, arrays: Fields, ids: np.ndarray, epochs: np.ndarray) -> Fields:
        """Return the training views of rows; those of one epoch are made at a time."""
        each = np.unique(epochs).tolist()
        if len(each) < 2:
            return self.view.train(arrays, ids, self.seed, *(each or [0]))
        out: Fields = {}
        for epoch in each:
            rows = np.flatnonzero(epochs == epoch)
            chosen = {
                name: array[torch.from_numpy(rows).to(array.device)]
                for name, array in arrays.items()
            }
            made = self.view.train(chosen, ids[rows], self.seed, epoch)
            for name, array in made.items():
                if name not in out:
                    out[name] = array.new_empty(len(ids), *array.shape[1:])
                out[name][torch.from_numpy(rows).to(array.device)] = array
        return out


@dataclass(frozen=True, eq=False)
class Selected:
    """Some rows of other examples, read where those are: nothing is copied.

    Attributes:
        examples: the others.
        rows: (n,) positions in them.
    """

    examples: Examples
    rows: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        """Ids of the rows, (n,) int64."""
        ids: np.ndarray = self.examples.ids[self.rows]
        return ids

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: np.ndarray) -> Read:
        """Return the examples at ``rows`` of the selection."""
        return self.examples.read(self.rows[rows])

    def subset(self, rows: np.ndarray) -> "Selected":
        """Return a selection of the selection."""
        return Selected(self.examples, self.rows[rows])
