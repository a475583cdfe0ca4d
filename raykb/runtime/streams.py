"""The steps of a source on a cluster, by Ray Data.

    steps, some at a time ──▶ pool of actors: read, make views ──▶ a block each
          ──▶ object store, within a budget, in order ──▶ the training's process: finish each step

Each rank runs a pipeline of its own, of its own share of every step, so that no rank can hold up
another. Nothing is materialised: a block is let go when the training has taken its steps.

They are actors, not tasks, since Ray ends processes that idle for a second, as they do whenever the
training is the slower one, and the next would have to import everything again.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from raykb.config import Section
from raykb.data.feed import InPlace, Observer, Tell
from raykb.data.loader import Loader
from raykb.data.source import Fields, Source
from raykb.engine.arguments import above, at_least, misfits, or_none, refuse
from raykb.engine.loop import Feed, Worker
from raykb.later import Later
from raykb.runtime.blocks import Maker, Pump, Window, make, piece_of
from raykb.runtime.storage import open_storage

ray_data = Later("ray.data")
backpressure = Later("ray.data._internal.execution.backpressure_policy")
_PIECES = 1024  # of one execution of Ray Data, at most; then follows the next
_BLOCKS = 12  # that the budget should have room for, so that several are made at a time
_FEWEST = 7  # that it must have: one in the training, three on their way there, three being freed
_LOOK_S = 0.5
_ANSWER_S = 2.0
_SETTLE_S = 2.0


@dataclass(eq=False)
class RayData:
    """Reads the steps of a source by actors of Ray Data.

    Args:
        source: of the steps.
        workers: actors for each worker of the training; None for its share of the free CPUs.
        worker_cpus: CPUs of an actor. Where so much is not free, it takes what is, down to nothing:
            then it shares the CPUs of the trainings.
        block_steps: steps of one block; fewer if the store is too small for them.
        store_mib: of the object store for the blocks of each worker of the training, from the
            beginning of a block until its last step has been handed over; half of what the cluster
            has, shared evenly, if that is less. Ray's figures are higher where blocks follow each
            other fast: it frees them once a second, or earlier where it needs the room.
        trainings: that share the cluster, with a stream like this each.
        timeout_s: seconds that a training waits for a batch before it gives up.
        tell: is told of each broken row that comes, once: the rank, and what is wrong.
    """

    source: Source
    _: KW_ONLY
    workers: int | None = None
    worker_cpus: float = 1.0
    block_steps: int = 4
    store_mib: float = 256.0
    trainings: int = 1
    timeout_s: float = 120.0
    tell: Tell | None = None

    def __post_init__(self) -> None:
        refuse(
            misfits(
                self,
                workers=or_none(at_least(1)),
                worker_cpus=above(0),
                block_steps=at_least(1),
                store_mib=above(0),
                trainings=at_least(1),
                timeout_s=above(0),
            )
        )
        self._observer, self._store = Observer(self.tell), _Store()
        self._running: list[Iterator[Fields]] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_running": [], "_store": _Store()}

    def batches(self, start: int, worker: Worker, stop: int | None = None) -> Iterator[Fields]:
        """Yield a worker's share of steps start, start + 1, … (see :class:`Feed`).

        Raises:
            ValueError: the batch does not divide by the ranks, or one step does not fit into the
                budget of the object store.
            TimeoutError: no batch came within ``timeout_s``, or not even one row of it.
        """
        with Pump(self._trial(start, worker)) as trial:
            step_bytes = trial.next(self.timeout_s, self._reasons)
        pipeline = _Pipeline(self, worker.rank, worker.size, step_bytes)
        batches = self._batches(start, stop, pipeline, worker.device)
        self._running.append(batches)
        return batches

    def figures(self) -> dict[str, float]:
        """Return rows per second, broken rows, and what the cluster's object stores hold."""
        return self._observer.figures() | self._store.figures()

    def close(self) -> None:
        """End the pipelines."""
        for batches in self._running:
            batches.close()  # type: ignore[attr-defined]  # a generator
        self._running.clear()

    def _trial(self, start: int, worker: Worker) -> Iterator[int]:
        yield max(1, self.source.step_bytes(start, worker.rank, worker.size))

    def _batches(
        self, start: int, stop: int | None, pipeline: "_Pipeline", device: torch.device
    ) -> Iterator[Fields]:
        end = math.inf if stop is None else stop
        if start >= end:
            return
        with Pump(pipeline.first(start)) as here, Pump(pipeline.blocks(start + 1, end)) as pump:
            # the first step is made here, while processes for the others start
            first = here.next(self.timeout_s, self._reasons)
            yield self._handed_over(first, start, pipeline.rank, device)
            step = start + 1
            while step < end:
                block = pump.next(self.timeout_s, self._reasons)
                due = range(step, step + pipeline.steps)
                if strange := set(block["step"].tolist()) - set(due):
                    raise RuntimeError(f"step {min(strange)} came where {step} was due")
                for number in due[: int(min(len(due), end - step))]:
                    yield self._handed_over(block, number, pipeline.rank, device)
                step = due.stop
                del block
                pipeline.window.returned += 1

    def _handed_over(
        self, block: dict[str, np.ndarray], step: int, rank: int, device: torch.device
    ) -> Fields:
        """Return the batch of a step from a block that has its rows."""
        piece = piece_of(block, step)
        self._observer.saw(rank, piece.ids, piece.problems)
        return self.source.finish(piece, device)

    def _reasons(self) -> str:
        """Say what may keep a pipeline from making progress."""
        have, free = ray.cluster_resources().get("CPU", 0), ray.available_resources().get("CPU", 0)
        return (
            f"of the cluster's {have:g} CPUs {free:g} are free, load here {os.getloadavg()[0]:.1f}"
            f" on {os.cpu_count()} cores, {self._store.summary()}. If a batch takes as long to "
            "make, raise timeout_s, or lower block_steps or the trainings' resources, or add nodes"
        )


@dataclass(frozen=True)
class BrokenImages:
    """The record of a training's broken images in its folder, a log for each rank.

    Attributes:
        uri: of the folder.
    """

    uri: str

    def __call__(self, rank: int, problem: str) -> None:
        """Add file, row and reason; what a stream's ``tell`` is."""
        open_storage(self.uri).append(self._log(rank), {"problem": problem})

    def problems(self, ranks: int) -> set[str]:
        """Return what so many ranks have added."""
        storage = open_storage(self.uri)
        records = (storage.records(self._log(rank)) for rank in range(ranks))
        return {record["problem"] for own in records for record in own}

    def _log(self, rank: int) -> str:
        return f"broken_images-{rank}.jsonl"


def broken_images(uris: Iterable[str], ranks: int) -> list[str]:
    """Return what so many ranks of several trainings have recorded, each image once, in order."""
    return sorted(set().union(*(BrokenImages(uri).problems(ranks) for uri in uris)))


TRANSPORTS: dict[str, type[Feed]] = {"ray": RayData, "loader": Loader, "in_place": InPlace}
RENAMED = {"views": "unlabelled.views_by"} | {
    key: f"unlabelled.{key}"
    for key in ("paths", "on_bad_image", "mix_shards", "image_size", "channels")
}
"""What stood in the section of a transport once."""
STREAM = Section(TRANSPORTS, given=("source", "tell", "trainings"), default="ray", renamed=RENAMED)
"""The section of a schema that says by what a stream comes."""


def has_workers(section: Mapping[str, Any]) -> bool:
    """Return whether a stream that is a row of :data:`TRANSPORTS` works beside its training."""
    return section["name"] != "in_place" and section.get("workers") != 0


def sharing(stream: Feed | None, trainings: int, cpus: int) -> Feed | None:
    """Return a stream that takes its share of the cluster, since so many trainings run at once.

    Args:
        stream: any; those that are not Ray Data's know no cluster.
        trainings: side by side.
        cpus: beside each of them.
    """
    if not isinstance(stream, RayData) or trainings == 1:
        return stream
    workers = stream.workers or max(1, cpus)
    return dataclasses.replace(stream, workers=workers, trainings=trainings)


class _Pipeline:
    """What makes the blocks of one rank, some steps each, in their order."""

    def __init__(self, feed: RayData, rank: int, size: int, step_bytes: int) -> None:
        whole = float(ray.cluster_resources()["object_store_memory"])
        budget = min(feed.store_mib * 2**20, whole / 2 / size / feed.trainings)
        if budget < _FEWEST * step_bytes:
            raise ValueError(
                f"store_mib: {budget / 2**20:.3g} MiB of the object store for each worker; must "
                f"be at least {_FEWEST * step_bytes / 2**20:.3g} for its share of {_FEWEST} steps. "
                "Raise store_mib, or start Ray with a larger object_store_memory (half of it is "
                "used), or make batches smaller, or what is read of each row"
            )
        self.steps = min(feed.block_steps, max(1, int(budget // (_BLOCKS * step_bytes))))
        # less those being freed
        self.window = Window(int(budget // (self.steps * step_bytes)) - 3)
        self._feed, self.rank, self._size = feed, rank, size

    def first(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield the columns of one step, made here."""
        yield make(range(step, step + 1), self._feed.source, self.rank, self._size)

    def blocks(self, start: int, end: float) -> Iterator[dict[str, np.ndarray]]:
        """Yield the blocks of all steps from ``start`` until ``end``; the last may go beyond."""
        while start < end:
            pieces = math.ceil(min(_PIECES, (end - start) / self.steps))
            dataset = self._dataset(start, pieces)
            # nothing ahead: Pump is, and whatever is ahead takes of the budget
            yield from dataset.iter_batches(
                batch_size=None, batch_format="numpy", prefetch_batches=0
            )
            start += self.steps * pieces
            self.window.begun += pieces

    def _dataset(self, first: int, pieces: int) -> Any:
        """Return a pipeline of so many pieces, one block each, in order."""
        starts = [{"step": first + self.steps * piece} for piece in range(pieces)]
        dataset = ray_data.from_items(starts, override_num_blocks=pieces)
        context = dataset.context  # its own
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.target_max_block_size = None  # a piece is a block
        context.raise_original_map_exception = True
        key = backpressure.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY
        context.set_config(key, [self.window.policy])
        cpus, count = self._pool()
        maker: Any = Maker
        return dataset.map_batches(
            maker,
            fn_constructor_args=(self._feed.source, self.rank, self._size, self.steps),
            batch_size=None,
            num_cpus=cpus,
            compute=ray_data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        )

    def _pool(self) -> tuple[float, int]:
        """Return the CPUs of an actor, and the number of actors."""
        each, workers = self._feed.worker_cpus, self._feed.workers
        end = time.monotonic() + _SETTLE_S
        while True:  # Ray takes a moment to see what has ended
            share = ray.available_resources().get("CPU", 0.0) / self._size
            if share >= each * (workers or 1) or time.monotonic() > end:
                break
            time.sleep(0.2)
        count = workers or max(1, int(share / each))
        # in the ten-thousandths that Ray counts in
        return min(each, int(share / count * 1e4) / 1e4), count


class _Store:
    """What the object stores of the cluster hold, looked at now and then."""

    def __init__(self) -> None:
        self._looked, self._figures = -_LOOK_S, dict[str, float]()

    def summary(self) -> str:
        figures = self.figures()
        if not figures:
            return "the object store does not answer"
        return (
            f"{figures['stream/store_mib']:.3g} MiB in the object store, "
            f"{figures['stream/spilled_mib']:.3g} spilled"
        )

    def figures(self) -> dict[str, float]:
        if time.monotonic() - self._looked >= _LOOK_S:
            with contextlib.suppress(Exception):  # a node that is lost; the figures are from before
                self._figures = self._now()
            self._looked = time.monotonic()
        return self._figures

    def _now(self) -> dict[str, float]:
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        store = get_memory_info_reply(state, timeout_seconds=_ANSWER_S).store_stats
        return {
            "stream/store_mib": store.object_store_bytes_used / 2**20,
            "stream/spilled_mib": store.spilled_bytes_total / 2**20,
        }
