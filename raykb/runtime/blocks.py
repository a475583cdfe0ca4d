"""Blocks of steps: how actors of Ray Data make them, how many, and how a training takes them.

A block is the columns of the rows of some steps, one step after another.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from ray.exceptions import RayTaskError

from raykb.data.source import Piece, Source
from raykb.engine.memory import keep_freed_memory
from raykb.later import Later

backpressure = Later("raykb.runtime.backpressure")
_PATIENCE_S = 20.0
_ARRAY = "array "  # before the names of a piece's arrays among the columns of a block


class Window:
    """Limits the blocks that are being made, that wait and that the training has taken.

    Ray Data's own limit of the object store lets more in: it does not count what has been taken,
    nor, before the first block has ended, those that are being made.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self.begun = 0  # by executions of Ray Data that have ended
        self.returned = 0

    def __deepcopy__(self, memo: object) -> "Window":
        return self  # Ray copies a pipeline's settings, and every copy means this window

    def policy(self, *of: Any) -> Any:
        """Return what Ray Data's scheduling loop asks before it begins a block."""
        return backpressure.Windowed(self.is_open, *of)

    def is_open(self, begun: int) -> bool:
        """Return whether one more block may begin, after so many of this execution."""
        return self.begun + begun < self.returned + self._blocks


class Maker:
    """Makes blocks; an actor."""

    def __init__(self, source: Source, rank: int, size: int, steps: int) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._of, self._steps = (source, rank, size), steps

    def __call__(self, piece: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the block of the piece that begins with a step."""
        first = int(piece["step"][0])
        return make(range(first, first + self._steps), *self._of)


def make(steps: range, source: Source, rank: int, size: int) -> dict[str, Any]:
    """Return the columns of what a rank sees at some steps, one step after another."""
    pieces = [source.read(step, rank, size) for step in steps]
    arrays = {
        _ARRAY + name: np.concatenate([piece.arrays[name].numpy() for piece in pieces])
        for name in pieces[0].arrays
    }
    problems = [problem for piece in pieces for problem in piece.problems]
    return arrays | {
        "id": np.concatenate([piece.ids for piece in pieces]),
        "epoch": np.concatenate([piece.epochs for piece in pieces]),
        "step": np.repeat(steps, [len(piece.ids) for piece in pieces]),
        "problem": np.array(problems, object),
    }


def piece_of(block: dict[str, np.ndarray], step: int) -> Piece:
    """Return the rows of a step in a block."""
    rows = np.flatnonzero(block["step"] == step)
    # indexed by an array, and so copied: the block can leave the store
    own = {name: column[rows] for name, column in block.items()}
    arrays = {
        name.removeprefix(_ARRAY): torch.from_numpy(column)
        for name, column in own.items()
        if name.startswith(_ARRAY)
    }
    return Piece(arrays, own["id"], own["epoch"], own["problem"].tolist())


class Pump:
    """Takes blocks in a thread of its own, one ahead, so that a wait for one can be given up."""

    def __init__(self, blocks: Iterator[Any]) -> None:
        self._blocks, self._taken = blocks, queue.SimpleQueue[Any]()
        self._wanted, self._stopped = threading.Semaphore(1), False
        self._patience_s = _PATIENCE_S
        self._thread = threading.Thread(target=self._run, name="raykb-stream", daemon=True)

    def __enter__(self) -> "Pump":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True
        self._wanted.release()
        self._thread.join(timeout=self._patience_s)  # Ray's pipeline is ended before Ray is

    def next(self, timeout_s: float, reasons: Callable[[], str]) -> Any:
        """Return the next block; raise what making it raised, or TimeoutError."""
        try:
            block = self._taken.get(timeout=timeout_s)
        except queue.Empty:
            self._patience_s = 0.0  # its thread waits for what may never come
            block = TimeoutError(f"the stream brought nothing for {timeout_s:g} s: {reasons()}")
        if isinstance(block, Exception):
            raise block
        self._wanted.release()
        return block

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
