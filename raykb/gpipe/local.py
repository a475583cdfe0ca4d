"""Micro-batches through the parts of one process, in clock cycles.

    cycle       0      1      2      3          (i, j): micro-batch i at part j
    part 0    (0,0)  (1,0)  (2,0)               the tasks of a cycle need nothing of each other
    part 1           (0,1)  (1,1)  (2,1)

A task's tensors pass these places, in backward from the last to the first::

    [1] moved to the part's device, by streams that overlap with its work
    [2] joined with the micro-batch before, so that backward takes the last one first
    [3] run by the part's layers, checkpointed or not, in the thread of the part's device
    [4] recomputed in backward, which begins before the gradient's copy has arrived
    [5] forked for the micro-batch that follows

A skip goes from the task that stashes it straight to the one that pops it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from raykb.engine.faults import add_note
from raykb.gpipe.checkpointing import Checkpointed
from raykb.gpipe.dependency import fork, join, lane, moved, waited
from raykb.gpipe.inplace import share_memory, skip_overwritten, version
from raykb.gpipe.modes import caller_modes
from raykb.gpipe.partition import Partition, SeedOf, Skips, Value
from raykb.gpipe.probe import as_tuple
from raykb.parts.skip import SkipKey

Job = tuple[torch.device, Callable[[], Any]]
"""Where something is to be done, and what."""


def clock_cycles(micro_batches: int, parts: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the tasks (micro-batch, part) of each cycle."""
    for cycle in range(micro_batches + parts - 1):
        first, last = max(0, cycle - micro_batches + 1), min(cycle, parts - 1)
        yield [(cycle - part, part) for part in range(first, last + 1)]


@contextlib.contextmanager
def workers(devices: Sequence[torch.device]) -> Iterator[Callable[[Sequence[Job]], list[Any]]]:
    """Give what does the jobs of a cycle and returns their results, in order.

    With one device the calling thread does them; with several each has a thread, which takes over
    the caller's gradient and autocast modes. When a failure is raised no job is going on.
    """
    if len(set(devices)) <= 1:
        yield lambda jobs: [work() for _, work in jobs]
        return
    modes = caller_modes({device.type for device in devices})

    def in_modes(work: Callable[[], Any]) -> Any:
        with modes():
            return work()

    with contextlib.ExitStack() as stack:
        threads = {d: stack.enter_context(ThreadPoolExecutor(1)) for d in set(devices)}

        def do_all(jobs: Sequence[Job]) -> list[Any]:
            futures = [threads[device].submit(in_modes, work) for device, work in jobs]
            wait(futures)
            return [future.result() for future in futures]

        yield do_all


class Task:
    """One micro-batch at one part: a function of tensors alone.

    Args:
        part: to run.
        value: the micro-batch as it reaches the part.
        skips: those that the part pops.
        seed_of: gives the seeds of its layers.
    """

    def __init__(self, part: Partition, value: Value, skips: Skips, seed_of: SeedOf | None) -> None:
        self._part, self._seed_of = part, seed_of
        self._bare = isinstance(value, Tensor)
        self._given = [key for key, skip in skips.items() if skip is not None]
        self._left: list[SkipKey] = []
        self._returns_bare = True
        self._main = len(as_tuple(value))
        self.inputs = (*as_tuple(value), *(skip for skip in skips.values() if skip is not None))
        self._twice = [  # skips that are the value too, and could be changed with it
            (key, skip, version(skip))
            for key, skip in skips.items()
            if skip is not None and any(share_memory(skip, tensor) for tensor in as_tuple(value))
        ]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the part on what the inputs became; may be called again."""
        main = tensors[: self._main]
        skips: Skips = dict.fromkeys(self._part.popped)
        skips |= zip(self._given, tensors[self._main :], strict=True)
        value, left = self._part(main[0] if self._bare else main, skips, self._seed_of)
        self._returns_bare = isinstance(value, Tensor)
        self._left = [key for key, skip in left.items() if skip is not None]
        return (*as_tuple(value), *(skip for skip in left.values() if skip is not None))

    def returned(self, outputs: tuple[Tensor, ...]) -> tuple[Value, Skips]:
        """Return the part's value, and the skips that leave it, from what the outputs became.

        Raises:
            ValueError: the part changed a skip that it was given twice, as its input too.
        """
        for key, skip, before in self._twice:
            if version(skip) != before:
                raise ValueError(skip_overwritten("a part", key))
        count = len(outputs) - len(self._left)
        skips: Skips = dict.fromkeys(self._part.stashed)
        skips |= zip(self._left, outputs[count:], strict=True)
        return outputs[0] if self._returns_bare else outputs[:count], skips


class LocalPipeline:
    """Runs one mini-batch through the parts.

    Args:
        parts: of the model, each on its device.
        devices: of the parts.
        sources: the part that each skip between parts comes from.
        checkpointed: number of micro-batches, from the first, that are run again in backward.
        seed_of: gives the seeds of a micro-batch's layers; None lets them draw as they do.
    """

    def __init__(
        self,
        parts: Sequence[Partition],
        devices: Sequence[torch.device],
        sources: Mapping[SkipKey, int],
        *,
        checkpointed: int,
        seed_of: Callable[[int], SeedOf] | None,
    ) -> None:
        self._parts, self._devices, self._sources = parts, devices, sources
        self._checkpointed, self._seed_of = checkpointed, seed_of
        several = len(set(devices)) > 1
        self._lanes = [lane(device, j, copies=several) for j, device in enumerate(devices)]
        self._phonies: list[Tensor | None] = [None] * len(parts)
        self._values: list[Value] = []
        self._skips: list[dict[SkipKey, tuple[Tensor | None, int]]] = []  # with their versions

    def run(self, micro_batches: Sequence[Value]) -> list[Value]:
        """Return the outputs of the micro-batches.

        Raises:
            Exception: what a layer raised, noted with its place; no later cycle is begun.
        """
        self._values, self._skips = list(micro_batches), [{} for _ in micro_batches]
        with workers(self._devices) as do_all:
            for cycle in clock_cycles(len(micro_batches), len(self._parts)):
                self._pass(cycle, do_all)
        return self._values

    def _pass(
        self, cycle: Sequence[tuple[int, int]], do_all: Callable[[Sequence[Job]], list[Any]]
    ) -> None:
        """Do the tasks of one cycle; nothing of them is kept but what they return."""
        tasks = [self._arrived(i, j) for i, j in cycle]
        jobs = [
            (self._devices[j], self._job(task, i, j))
            for task, (i, j) in zip(tasks, cycle, strict=True)
        ]
        results = do_all(jobs)
        for task, result, (i, j) in zip(tasks, results, cycle, strict=True):
            self._leave(task, result, i, j)

    def _arrived(self, i: int, j: int) -> Task:
        here, value = self._lanes[j], self._values[i]
        tensors = moved(as_tuple(value), self._lanes[max(0, j - 1)], here)  # [1]
        skips: Skips = {}
        for key in self._parts[j].popped:
            skip, mark = self._skips[i].pop(key)
            if skip is not None and version(skip) != mark:
                raise ValueError(skip_overwritten("a part", key))
            lane = self._lanes[self._sources[key]]
            skips[key] = None if skip is None else moved([skip], lane, here)[0]
        task = Task(
            self._parts[j],
            tensors[0] if isinstance(value, Tensor) else tensors,
            skips,
            None if self._seed_of is None else self._seed_of(i),
        )
        task.inputs = waited(task.inputs, here.arrive, here.compute)
        task.inputs = join(task.inputs, self._phonies[j])  # [2]
        return task

    def _job(self, task: Task, i: int, j: int) -> Callable[[], Any]:
        def work() -> Any:
            try:
                with self._lanes[j].computing():  # [3]
                    if i < self._checkpointed:
                        return Checkpointed(task, task.inputs)
                    return task(*task.inputs)
            except Exception as error:
                add_note(error, f"part {j}, micro-batch {i}")
                raise

        return work

    def _leave(self, task: Task, result: Any, i: int, j: int) -> None:
        here = self._lanes[j]
        again = isinstance(result, Checkpointed)
        outputs = waited(result.outputs if again else result, here.compute, here.leave)
        if again:
            outputs = result.recomputed(outputs)  # [4]
        if not any(tensor.requires_grad for tensor in task.inputs):
            # Nothing was joined at [2]. Here it orders the beginnings of the backward passes, and
            # their ends too: in one thread autograd takes what was made last first.
            outputs = join(outputs, self._phonies[j])
        outputs, self._phonies[j] = fork(outputs)  # [5]
        self._values[i], left = task.returned(outputs)
        self._skips[i] |= {
            key: (skip, 0 if skip is None else version(skip)) for key, skip in left.items()
        }
