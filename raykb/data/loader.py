"""Steps by torch's DataLoader: one host, no cluster."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from raykb.data.feed import Observer, Tell, numbers
from raykb.data.source import Fields, Piece, Source
from raykb.engine.arguments import above, at_least, check_settings
from raykb.engine.loop import Worker
from raykb.engine.memory import keep_freed_memory


@dataclass(eq=False)
class Loader:
    """Reads the steps of a source by processes of a DataLoader.

    Args:
        source: of the steps.
        workers: processes beside the training; 0 makes all in the training's own, where nobody
            can give up a batch after ``timeout_s``.
        prefetch: steps that each of them is ahead.
        timeout_s: seconds that a training waits for a batch before it gives up.
        tell: is told of each broken row that comes, once: the rank, and what is wrong.
    """

    source: Source
    _: KW_ONLY
    workers: int = 0
    prefetch: int = 2
    timeout_s: float = 120.0
    tell: Tell | None = None

    def __post_init__(self) -> None:
        rules = {"workers": at_least(0), "prefetch": at_least(1), "timeout_s": above(0)}
        check_settings(self, **rules)
        self._observer = Observer(self.tell)
        self._running: list[Iterator[Fields]] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_running": []}

    def batches(self, start: int, worker: Worker, stop: int | None = None) -> Iterator[Fields]:
        """Yield a worker's share of steps start, start + 1, … (see :class:`Feed`)."""
        self.source.order.at(start, worker.rank, worker.size)  # refuses at once
        batches = self._batches(start, worker, stop)
        self._running.append(batches)
        return batches

    def figures(self) -> dict[str, float]:
        """Return rows per second and broken rows."""
        return self._observer.figures()

    def close(self) -> None:
        """End the processes."""
        for batches in self._running:
            batches.close()  # type: ignore[attr-defined]  # a generator
        self._running.clear()

    def _batches(self, start: int, worker: Worker, stop: int | None) -> Iterator[Fields]:
        loader = DataLoader(
            _Steps(self.source, worker.rank, worker.size),
            batch_size=None,
            sampler=numbers(start, stop),
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            timeout=self.timeout_s if self.workers else 0,
            collate_fn=_as_it_is,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # not torch's own, of which dropout draws
        )
        pieces = iter(loader)
        for _ in numbers(start, stop):
            piece = self._next(pieces)
            self._observer.saw(worker.rank, piece.ids, piece.problems)
            yield self.source.finish(piece, worker.device)

    def _next(self, pieces: Iterator[Piece]) -> Piece:
        try:
            return next(pieces)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            raise TimeoutError(
                f"{self.workers} processes brought nothing for {self.timeout_s:g} s; raise "
                "timeout_s if a batch takes as long, or give the training more workers"
            ) from error


@dataclass(frozen=True)
class _Steps(Dataset[Piece]):
    """A rank's share of each step, by the step's number."""

    source: Source
    rank: int
    size: int

    def __getitem__(self, step: int) -> Piece:
        return self.source.read(step, self.rank, self.size)


def _begin(worker: int) -> None:
    keep_freed_memory()


def _as_it_is(made: Any) -> Any:
    return made
