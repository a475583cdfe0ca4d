"""The stream of unlabelled images on a cluster, by Ray Data.

    plan ──▶ pieces of some steps each ──▶ pool of actors: read, decode, both views ──▶ a block each
         ──▶ object store, within a budget, in order ──▶ the training's process: steps

Each rank runs a pipeline of its own, of its own share of every step, so that no rank can hold up
another. Nothing is materialised: a block is let go when the training has taken its steps.

They are actors, not tasks, since Ray ends processes that idle for a second, as they do whenever the
training is the slower one, and the next would have to import everything again.
"""

import contextlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.data import Dataset
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.exceptions import RayTaskError

from raykb.data.loader import LoaderStream
from raykb.data.unlabelled import CPU, Observer, Unlabelled, Views
from raykb.engine.arguments import above, at_least, misfits, or_none, refuse
from raykb.engine.memory import keep_freed_memory
from raykb.runtime.storage import open_storage

_PIECES = 1024  # of one execution of Ray Data, at most; then follows the next
_BLOCKS = 12  # that the budget should have room for, so that several are made at a time
_FEWEST = 6  # that it must have: one in the training, three on their way there, two being freed
_REST_S = 0.02
_LOOK_S = 0.5
_ANSWER_S = 2.0
_SETTLE_S = 2.0
_PATIENCE_S = 20.0


@dataclass(kw_only=True, eq=False)
class RayStream(Unlabelled):
    """Unlabelled images and their views, made by actors of Ray Data.

    Args:
        workers: actors for each worker of the training; None for its share of the free CPUs.
        worker_cpus: CPUs of an actor. Where so much is not free, it takes what is, down to nothing:
            then it shares the CPUs of the trainings.
        block_steps: steps of one block; fewer if the store is too small for them.
        store_mib: of the object store for the blocks of each worker of the training, from the
            beginning of a block until its last step has been handed over; half of what the cluster
            has, shared evenly, if that is less. Ray's figures are higher where blocks follow each
            other fast: it frees them once a second, or earlier where it needs the room.
        trainings: that share the cluster, with a stream like this each.
    """

    workers: int | None = None
    worker_cpus: float = 1.0
    block_steps: int = 4
    store_mib: float = 256.0
    trainings: int = 1

    def __post_init__(self) -> None:
        refuse(
            misfits(
                self,
                workers=or_none(at_least(1)),
                worker_cpus=above(0),
                block_steps=at_least(1),
                store_mib=above(0),
                trainings=at_least(1),
            )
        )
        super().__post_init__()
        self._observer, self._store = Observer(self.tell), _Store()
        self._running: list[Iterator[Views]] = []

    def __getstate__(self) -> dict[str, Any]:
        own = {"_running": [], "_observer": Observer(self.tell), "_store": _Store()}
        return self.__dict__ | own

    def batches(
        self,
        start: int,
        rank: int = 0,
        size: int = 1,
        device: torch.device = CPU,
        stop: int | None = None,
    ) -> Iterator[Views]:
        """Yield a rank's views of steps start, start + 1, … (see :class:`Stream`).

        Raises:
            ValueError: the batch does not divide by the ranks, or one step does not fit into the
                budget of the object store.
            TimeoutError: no batch came within ``timeout_s``.
        """
        views = self._views(start, stop, _Pipeline(self, rank, size), device)
        self._running.append(views)
        return views

    def figures(self) -> dict[str, float]:
        """Return images per second, broken images, and what the cluster's object stores hold."""
        return self._observer.figures() | self._store.figures()

    def close(self) -> None:
        """End the pipelines."""
        for views in self._running:
            views.close()  # type: ignore[attr-defined]  # a generator
        self._running.clear()

    def _views(
        self, start: int, stop: int | None, pipeline: "_Pipeline", device: torch.device
    ) -> Iterator[Views]:
        end = math.inf if stop is None else stop
        if start >= end:
            return
        with _Pump(pipeline.first(start)) as here, _Pump(pipeline.blocks(start + 1, end)) as pump:
            # the first step is made here, while processes for the others start
            first = here.next(self.timeout_s, self._reasons)
            yield self._handed_over(first, start, pipeline.rank, device)
            step = start + 1
            while step < end:
                block = pump.next(self.timeout_s, self._reasons)
                parts = np.split(np.arange(len(block["ids"])), pipeline.steps)
                for part in parts[: int(min(pipeline.steps, end - step))]:
                    # indexed by an array, and so copied: the block can leave the store
                    piece = {name: column[part] for name, column in block.items()}
                    yield self._handed_over(piece, step, pipeline.rank, device)
                    step += 1
                del block
                pipeline.window.returned += 1

    def _handed_over(
        self, piece: dict[str, Any], step: int, rank: int, device: torch.device
    ) -> Views:
        """Return the views of a step from the columns of its piece of a block."""
        if not (piece["step"] == step).all():
            raise RuntimeError(f"step {piece['step'][0]} came from the stream where {step} was due")
        self._observer.saw(rank, piece["ids"], piece["problem"].tolist())
        made = [torch.from_numpy(piece[name]) for name in _names(self)]
        if self.views == "trainer":
            made = list(self.both(made[0].to(device), piece["ids"], step))
        weak, strong = made
        return Views(weak, strong, torch.from_numpy(piece["ids"]))

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


STREAMS = {"ray": RayStream, "loader": LoaderStream}


def _names(source: Unlabelled) -> tuple[str, ...]:
    return ("weak", "strong") if source.views == "workers" else ("images",)


class _Pipeline:
    """What makes the blocks of one rank, some steps each, in their order."""

    def __init__(self, source: RayStream, rank: int, size: int) -> None:
        whole = float(ray.cluster_resources()["object_store_memory"])
        budget = min(source.store_mib * 2**20, whole / 2 / size / source.trainings)
        share = source.order.slice(rank, size)
        views = 1 + source.view.strong_views if source.views == "workers" else 1
        step = (share.stop - share.start) * views * int(np.prod(source.shape))
        if budget < _FEWEST * step:
            raise ValueError(
                f"store_mib: {budget / 2**20:.3g} MiB of the object store for each worker; must "
                f"be at least {_FEWEST * step / 2**20:.3g} for {_FEWEST} steps' views of its share "
                "of the batch. Raise store_mib, or start Ray with a larger object_store_memory "
                "(half of it is used), or lower batch_size or image_size"
            )
        self.steps = min(source.block_steps, max(1, int(budget // (_BLOCKS * step))))
        self.window = _Window(int(budget // (self.steps * step)) - 2)  # less those being freed
        self._source, self.rank, self._size = source, rank, size

    def first(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield the columns of one step, made here."""
        yield _make([step], self._source, self.rank, self._size)

    def blocks(self, start: int, end: float) -> Iterator[dict[str, np.ndarray]]:
        """Yield the blocks of all steps from ``start`` until ``end``; the last may go beyond."""
        while start < end:
            pieces = math.ceil(min(_PIECES, (end - start) / self.steps))
            dataset = self._dataset(start, pieces)
            # nothing ahead: _Pump is, and whatever is ahead takes of the budget
            yield from dataset.iter_batches(
                batch_size=None, batch_format="numpy", prefetch_batches=0
            )
            start += self.steps * pieces
            self.window.begun += pieces

    def _dataset(self, first: int, pieces: int) -> Dataset:
        """Return a pipeline of so many pieces, one block each, in order."""
        starts = [{"step": first + self.steps * piece} for piece in range(pieces)]
        dataset = ray.data.from_items(starts, override_num_blocks=pieces)
        context = dataset.context  # its own
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.target_max_block_size = None  # a piece is a block
        context.raise_original_map_exception = True
        context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [self.window.policy])
        cpus, count = self._pool()
        maker: Any = _Maker
        return dataset.map_batches(
            maker,
            fn_constructor_args=(self._source, self.rank, self._size, self.steps),
            batch_size=None,
            num_cpus=cpus,
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        )

    def _pool(self) -> tuple[float, int]:
        """Return the CPUs of an actor, and the number of actors."""
        each, workers = self._source.worker_cpus, self._source.workers
        end = time.monotonic() + _SETTLE_S
        while True:  # Ray takes a moment to see what has ended
            share = ray.available_resources().get("CPU", 0.0) / self._size
            if share >= each * (workers or 1) or time.monotonic() > end:
                break
            time.sleep(0.2)
        count = workers or max(1, int(share / each))
        # in the ten-thousandths that Ray counts in
        return min(each, int(share / count * 1e4) / 1e4), count


class _Window:
    """Limits the blocks that are being made, that wait and that the training has taken.

    Ray Data's own limit of the object store lets more in: it does not count what has been taken,
    nor, before the first block has ended, those that are being made.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self.begun = 0  # by executions of Ray Data that have ended
        self.returned = 0

    def __deepcopy__(self, memo: object) -> "_Window":
        return self  # Ray copies a pipeline's settings, and every copy means this window

    def policy(self, *of: Any) -> BackpressurePolicy:
        """Return what Ray Data's scheduling loop asks before it begins a block."""
        return _Policy(self, *of)

    def is_open(self, begun: int) -> bool:
        """Return whether one more block may begin, after so many of this execution."""
        return self.begun + begun < self.returned + self._blocks


class _Policy(BackpressurePolicy):
    def __init__(self, window: _Window, *of: Any) -> None:
        super().__init__(*of)
        self._window = window

    def can_add_input(self, op: Any) -> bool:
        """Say whether a block may begin; where none may and none is made, let the loop rest.

        It runs in the training's process and waits for tasks alone. Without a rest it would take a
        whole core while there are none, and the interpreter from the training.
        """
        if not op.input_dependencies or self._window.is_open(op.metrics.num_inputs_received):
            return True
        if not op.num_active_tasks():
            time.sleep(_REST_S)
        return False


class _Maker:
    """Makes blocks; an actor."""

    def __init__(self, source: Unlabelled, rank: int, size: int, steps: int) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._of, self._steps = (source, rank, size), steps

    def __call__(self, piece: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the block of the piece that begins with a step."""
        first = int(piece["step"][0])
        return _make(range(first, first + self._steps), *self._of)


def _make(steps: Iterable[int], source: Unlabelled, rank: int, size: int) -> dict[str, Any]:
    """Return the columns of what a rank sees at some steps."""
    columns: dict[str, list[Any]] = {}
    for step in steps:
        images, ids, problems = source.images(step, rank, size)
        made = [images]
        if source.views == "workers":
            both = source.both(torch.from_numpy(images), ids, step)
            made = [view.numpy() for view in both]
        row = dict(zip(_names(source), made, strict=True))
        row |= {"ids": ids, "step": np.full(len(ids), step), "problem": np.array(problems, object)}
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in columns.items()}


class _Pump:
    """Takes blocks in a thread of its own, one ahead, so that a wait for one can be given up."""

    def __init__(self, blocks: Iterator[dict[str, np.ndarray]]) -> None:
        self._blocks, self._taken = blocks, queue.SimpleQueue[Any]()
        self._wanted, self._stopped = threading.Semaphore(1), False
        self._patience_s = _PATIENCE_S
        self._thread = threading.Thread(target=self._run, name="raykb-stream", daemon=True)

    def __enter__(self) -> "_Pump":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True
        self._wanted.release()
        self._thread.join(timeout=self._patience_s)  # Ray's pipeline is ended before Ray is

    def next(self, timeout_s: float, reasons: Callable[[], str]) -> dict[str, np.ndarray]:
        """Return the next block; raise what making it raised, or TimeoutError."""
        try:
            block = self._taken.get(timeout=timeout_s)
        except queue.Empty:
            self._patience_s = 0.0  # its thread waits for what may never come
            block = TimeoutError(
                f"the stream of unlabelled images brought nothing for {timeout_s:g} s: {reasons()}"
            )
        if isinstance(block, Exception):
            raise block
        self._wanted.release()
        found: dict[str, np.ndarray] = block
        return found

    def _run(self) -> None:
        try:
            while self._wanted.acquire() and not self._stopped:
                self._taken.put(next(self._blocks))
        except StopIteration:
            pass  # no more is asked for
        except Exception as error:
            self._taken.put(_cause(error))
        finally:
            self._blocks.close()  # type: ignore[attr-defined]  # a generator; ends Ray's tasks


def _cause(error: Exception) -> Exception:
    """Return what a task raised itself, not what Ray makes of it."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return error.cause
    return error


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
