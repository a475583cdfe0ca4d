"""A second modality, to show that nothing between examples and view knows what rows are."""

from dataclasses import dataclass

import numpy as np
import torch

from raykb.data.order import Endless
from raykb.data.source import Read, Selected, Source
from raykb.engine.loop import Worker
from raykb.engine.seeding import keyed_uniform, stream_seed


@dataclass(frozen=True)
class Series:
    """Curves of two channels with the time of each point; their ids descend."""

    count: int
    length: int = 9
    broken: tuple[int, ...] = ()

    @property
    def ids(self):
        return 1000 - np.arange(self.count)

    def __len__(self):
        return self.count

    def read(self, rows):
        times = np.linspace(0, 1, self.length) + rows[:, None]  # (n, T) float64
        curves = np.stack([np.sin(times), np.cos(times)], 1).astype(np.float32)  # (n, 2, T)
        problems = ["the sensor was off" if row in self.broken else "" for row in rows]
        return Read({"curves": curves, "times": times}, self.ids[rows], problems)

    def subset(self, rows):
        return Selected(self, rows)


@dataclass(frozen=True)
class Jitter:
    """Shifts each curve by a number of its own, twice; times end at the workers."""

    width: float = 0.5

    def train(self, arrays, ids, seed, epoch):
        shifts = keyed_uniform(stream_seed(seed, "jitter", epoch), ids, 2).float() * self.width
        both = arrays["curves"][:, None] + shifts.to(arrays["curves"])[:, :, None, None]
        return {"both": both, "start": arrays["times"][:, 0], "ids": torch.from_numpy(ids)}

    def finish(self, arrays):
        return arrays | {"both": arrays["both"] * 2}

    def plain(self, arrays):
        return {"both": arrays["curves"][:, None] * 2, "start": arrays["times"][:, 0]}


def series(count=20, *, order=Endless, batch_size=6, seed=5, views_by="workers", **settings):
    """Return a source of series."""
    of = order(count, batch_size, seed)
    return Source(Series(count, **settings), of, Jitter(), seed, views_by)


def take(feed, count, start=0, rank=0, size=1):
    """Return some steps of a feed, which is closed."""
    batches = feed.batches(start, Worker(rank, size))
    try:
        return [next(batches) for _ in range(count)]
    finally:
        feed.close()


def same(one, other):
    """Say whether two lists of batches have equal fields, in the same types."""
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def joined(parts):
    """Return what ranks see of each step, one rank after another."""
    return [
        {name: torch.cat([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
