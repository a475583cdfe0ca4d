"""The stream of unlabelled images by torch's DataLoader: one host, no cluster."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raykb.data.unlabelled import CPU, Observer, Unlabelled, Views
from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.memory import keep_freed_memory

_Made = tuple[tuple[Tensor, ...], Tensor, list[str]]  # images or both views, ids, problems


@dataclass(kw_only=True, eq=False)
class LoaderStream(Unlabelled):
    """Unlabelled images and their views, made by processes of a DataLoader.

    Args:
        workers: processes beside the training; 0 makes all in the training's own, where nobody
            can give up a batch after ``timeout_s``.
        prefetch: steps that each of them is ahead.
    """

    workers: int = 0
    prefetch: int = 2

    def __post_init__(self) -> None:
        refuse(misfits(self, workers=at_least(0), prefetch=at_least(1)))
        super().__post_init__()
        self._observer = Observer(self.tell)
        self._running: list[Iterator[Views]] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_running": [], "_observer": Observer(self.tell)}

    def batches(
        self,
        start: int,
        rank: int = 0,
        size: int = 1,
        device: torch.device = CPU,
        stop: int | None = None,
    ) -> Iterator[Views]:
        """Yield a rank's views of steps start, start + 1, … (see :class:`Stream`)."""
        self.order.slice(rank, size)
        views = self._views(start, stop, rank, size, device)
        self._running.append(views)
        return views

    def figures(self) -> dict[str, float]:
        """Return images per second and broken images."""
        return self._observer.figures()

    def close(self) -> None:
        """End the processes."""
        for views in self._running:
            views.close()  # type: ignore[attr-defined]  # a generator
        self._running.clear()

    def _views(
        self, start: int, stop: int | None, rank: int, size: int, device: torch.device
    ) -> Iterator[Views]:
        loader = DataLoader(
            _Steps(self, rank, size),
            batch_size=None,
            sampler=_numbers(start, stop),
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            timeout=self.timeout_s if self.workers else 0,
            collate_fn=_as_it_is,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # not torch's own, of which dropout draws
        )
        batches = iter(loader)
        for step in _numbers(start, stop):
            made, ids, problems = self._next(batches)
            self._observer.saw(rank, ids.numpy(), problems)
            if self.views == "trainer":
                made = self.both(made[0].to(device), ids.numpy(), step)
            weak, strong = made
            yield Views(weak, strong, ids)

    def _next(self, batches: Iterator[_Made]) -> _Made:
        try:
            return next(batches)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            raise TimeoutError(
                f"{self.workers} processes brought nothing for {self.timeout_s:g} s; raise "
                "timeout_s if a batch takes as long, or give the training more workers"
            ) from error


class _Steps(Dataset[_Made]):
    """What is made of each step, by its number."""

    def __init__(self, source: Unlabelled, rank: int, size: int) -> None:
        self._make = functools.partial(source.images, rank=rank, size=size)
        self._source = source

    def __getitem__(self, step: int) -> _Made:
        images, ids, problems = self._make(step)
        pixels = torch.from_numpy(images)
        at_once = self._source.views == "workers"
        made = self._source.both(pixels, ids, step) if at_once else (pixels,)
        return made, torch.from_numpy(ids), problems


def _numbers(start: int, stop: int | None) -> Iterable[int]:
    return itertools.count(start) if stop is None else range(start, stop)


def _begin(worker: int) -> None:
    keep_freed_memory()


def _as_it_is(made: Any) -> Any:
    return made
