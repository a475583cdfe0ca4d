"""How steps come from a source to a training: a feed reads them, here or beside it.

    InPlace        here, when a step is asked for
    Loader         processes of a torch DataLoader             (raykb/data/loader.py)
    RayData        actors on a cluster                         (raykb/runtime/streams.py)
    Together       several feeds, as labelled and unlabelled images of one step
    Unread         none, for a training that is rehearsed

What comes out is the same. A feed can be pickled until batches are asked for.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch

from raykb.data.source import Examples, Fields, Source, View
from raykb.engine.loop import Feed, Worker

logger = logging.getLogger(__name__)

_SHOWN = 10  # messages about broken rows

Tell = Callable[[int, str], None]
"""``tell(rank, problem)``: what is wrong with an example, which is named."""


class Observer:
    """What a feed knows of itself: how fast it is, and which rows were broken."""

    def __init__(self, tell: Tell | None = None) -> None:
        self._since, self._rows, self._rate = time.monotonic(), 0, 0.0
        self._broken: set[int] = set()
        self._tell = tell

    def __reduce__(self) -> tuple[type["Observer"], tuple[Tell | None]]:
        return Observer, (self._tell,)  # elsewhere it has seen nothing yet

    def saw(self, rank: int, ids: np.ndarray, problems: Sequence[str]) -> None:
        """Take note of a batch that was handed over."""
        self._rows += len(ids)
        for sample, problem in zip(ids.tolist(), problems, strict=True):
            if problem and sample not in self._broken:
                self._broken.add(sample)
                if len(self._broken) <= _SHOWN:
                    logger.warning("%s; another one is seen in its place", problem)
                if self._tell is not None:
                    self._tell(rank, problem)

    def figures(self) -> dict[str, float]:
        """Return rows per second of the last second or more, and broken rows so far."""
        seconds = time.monotonic() - self._since
        if seconds >= 1.0:
            self._rate = self._rows / seconds
            self._since, self._rows = time.monotonic(), 0
        return {
            "stream/rows_per_s": self._rate,
            "stream/broken_rows": float(len(self._broken)),
        }


@dataclass(eq=False)
class InPlace:
    """Makes each step here, when it is asked for.

    Args:
        source: of the steps.
        tell: is told of each broken row that comes, once: the rank, and what is wrong.
    """

    source: Source
    _: KW_ONLY
    tell: Tell | None = None

    def __post_init__(self) -> None:
        self._observer = Observer(self.tell)

    def batches(self, start: int, worker: Worker, stop: int | None = None) -> Iterator[Fields]:
        """Yield a worker's share of steps start, start + 1, … (see ``engine.loop.Feed``)."""
        self.source.order.at(start, worker.rank, worker.size)  # refuses at once
        return self._batches(start, worker, stop)

    def _batches(self, start: int, worker: Worker, stop: int | None) -> Iterator[Fields]:
        for step in numbers(start, stop):
            piece = self.source.read(step, worker.rank, worker.size)
            self._observer.saw(worker.rank, piece.ids, piece.problems)
            yield self.source.finish(piece, worker.device)

    def figures(self) -> dict[str, float]:
        """Return nothing: all that happens is the training's own work."""
        return {}

    def close(self) -> None:
        """End nothing: nothing runs."""


class Together:
    """Several feeds as one: the fields of a step are those of all of them.

    Args:
        feeds: in their order, in which their steps are made, too.
    """

    def __init__(self, *feeds: Feed) -> None:
        self.feeds = feeds

    def batches(self, start: int, worker: Worker, stop: int | None = None) -> Iterator[Fields]:
        """Yield a worker's share of steps start, start + 1, … (see ``engine.loop.Feed``)."""
        running = [feed.batches(start, worker, stop) for feed in self.feeds]
        return map(_merged, zip(*running, strict=True))

    def figures(self) -> dict[str, float]:
        """Return the figures of all; where two have one of a name, the later one's."""
        return {name: value for feed in self.feeds for name, value in feed.figures().items()}

    def close(self) -> None:
        """End what all have started."""
        for feed in self.feeds:
            feed.close()


class Unread:
    """No steps at all: what a training has that is put together to hear what is wrong with it."""

    def batches(self, start: int, worker: Worker, stop: int | None = None) -> Iterator[Fields]:
        """Refuse (see ``engine.loop.Feed``)."""
        raise ValueError("feed: none, which can be rehearsed but not trained on; give the data one")

    def figures(self) -> dict[str, float]:
        """Return nothing: nothing is read."""
        return {}

    def close(self) -> None:
        """End nothing: nothing runs."""


def plain_batches(
    examples: Examples,
    view: View,
    device: torch.device,
    *,
    batch_size: int = 500,
    rank: int = 0,
    size: int = 1,
) -> Iterator[Fields]:
    """Yield the test form of all examples once, in their order, on ``device``.

    Args:
        examples: what to evaluate on.
        view: its plain form is taken.
        device: where it is made.
        batch_size: rows of a batch; the last one may have fewer.
        rank: which of those that share the rows; it takes every ``size``-th.
        size: their number.
    """
    own = np.arange(rank, len(examples), size)
    for first in range(0, len(own), batch_size):
        arrays = examples.read(own[first : first + batch_size]).arrays
        yield view.plain({name: torch.from_numpy(a).to(device) for name, a in arrays.items()})


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        if twice := sorted(merged.keys() & part.keys()):
            raise ValueError(
                f"{', '.join(twice)}: come from two feeds; must come from one, so give the views "
                "of their sources other fields"
            )
        merged |= part
    return merged


def numbers(start: int, stop: int | None) -> Iterable[int]:
    """Return start, start + 1, … below ``stop``, or without an end."""
    return itertools.count(start) if stop is None else range(start, stop)
