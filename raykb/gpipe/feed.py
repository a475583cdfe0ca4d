"""How a batch reaches a pipeline: inputs stay with the first stage, targets go to the last."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raykb.engine.messages import told
from raykb.gpipe.grid import Grid
from raykb.gpipe.partition import Value
from raykb.gpipe.probe import Spec, as_tuple


@dataclass(frozen=True)
class Fed:
    """A pipeline's share of a batch, as one of its processes knows it.

    Attributes:
        inputs: of the model, on the first stage; None elsewhere.
        targets: of the loss, on the last stage; None elsewhere.
        specs: of the inputs, everywhere.
        bare: whether the input is one tensor rather than a tuple.
        total: samples in the whole batch, over all replicas.
    """

    inputs: Value | None
    targets: Value | None
    specs: tuple[Spec, ...]
    bare: bool
    total: int

    @property
    def rows(self) -> int:
        """Samples of this replica."""
        return self.specs[0].shape[0]


_END = -1  # in place of a number of samples
_NAMES = {each: name for name, each in vars(torch).items() if isinstance(each, torch.dtype)}
_TYPES = {name: each for each, name in _NAMES.items()}


@dataclass(frozen=True)
class _Look:
    """Shapes and types of a batch's tensors, and which of its halves is one tensor by itself."""

    inputs: tuple[Spec, ...]
    bare: bool
    targets: tuple[Spec, ...]
    target_bare: bool

    @classmethod
    def of(cls, inputs: Value, targets: Value) -> "_Look":
        """Return that of a batch."""
        given, aims = (tuple(map(Spec.of, as_tuple(value))) for value in (inputs, targets))
        return cls(given, isinstance(inputs, Tensor), aims, isinstance(targets, Tensor))

    def plain(self) -> list[Any]:
        """Return it as JSON has it."""
        halves = (self.inputs, self.targets)
        specs = [[(spec.shape, _NAMES[spec.dtype]) for spec in half] for half in halves]
        return [*specs, self.bare, self.target_bare]

    @classmethod
    def of_plain(cls, said: list[Any]) -> "_Look":
        """Return what :meth:`plain` made plain."""
        *specs, bare, target_bare = said
        given, aims = (tuple(Spec(tuple(shape), _TYPES[name]) for shape, name in s) for s in specs)
        return cls(given, bare, aims, target_bare)


class Feed:
    """Hands batches to the processes of a pipeline.

    Worker 0 goes on to its first micro-batch at once; what it sends is under way meanwhile. What
    batches look like is told again only when it changes. Keep a feed until its last batch has been
    used: what it has sent is under way as long as it lives.

    Args:
        grid: the processes.
        last: worker that has the last stage.
        device: of this process.
    """

    def __init__(self, grid: Grid, last: int, device: torch.device | str = "cpu") -> None:
        self._grid, self._last, self._device = grid, last, torch.device(device)
        self._look: _Look | None = None
        self._under_way: list[tuple[Any, Tensor]] = []  # works, and what they send

    def __call__(self, batch: tuple[Value, Value, int] | None) -> Fed | None:
        """Return what this process is to know of a batch; None when worker 0 has no more.

        Args:
            batch: on worker 0: inputs and targets of this replica, first dimension the samples,
                and the number of samples in the whole batch, or None for the end. None elsewhere.
        """
        inputs = targets = look = None
        total = _END
        if batch is not None:
            inputs, targets = (self._here(value) for value in batch[:2])
            total = batch[2]
            look = _Look.of(inputs, targets)
        look, total = self._told(look, total)
        if look is None:
            return None
        if self._last > 0:
            targets = self._passed(targets, look)
        return Fed(inputs, targets, look.inputs, look.bare, total)

    def _told(self, look: "_Look | None", total: int) -> tuple["_Look | None", int]:
        """Return what worker 0 knows of its batch."""
        grid = self._grid
        if grid.workers == 1:
            return look, total
        self._finish()
        known = look is None or look == self._look
        header = torch.tensor([total, known], device=self._device)
        work: Any = dist.broadcast(header, grid.peer(0), group=grid.row, async_op=True)
        if grid.worker == 0:
            self._under_way.append((work, header))
        else:
            work.wait()
            total, known = header.tolist()
        if total == _END:
            self._finish()
            return None, total
        if not known:
            said = None if look is None else look.plain()
            said = told(said, source=grid.peer(0), group=grid.row, device=self._device)
            self._look = _Look.of_plain(said)
        return self._look, total

    def _finish(self) -> None:
        """Wait until what was sent for the last batch has arrived."""
        for work, _ in self._under_way:
            work.wait()
        self._under_way.clear()

    def _here(self, value: Value) -> Value:
        if isinstance(value, Tensor):
            return value.to(self._device, non_blocking=True)
        return tuple(tensor.to(self._device, non_blocking=True) for tensor in value)

    def _passed(self, targets: Value | None, look: "_Look") -> Value | None:
        """Send targets from the first stage to the last."""
        grid = self._grid
        if grid.worker == 0 and targets is not None:
            for tensor in map(Tensor.contiguous, as_tuple(targets)):
                work = dist.isend(tensor, grid.peer(self._last), group=grid.row)
                self._under_way.append((work, tensor))
            return None
        if grid.worker != self._last:
            return None
        received = tuple(spec.empty(self._device) for spec in look.targets)
        for tensor in received:
            dist.recv(tensor, grid.peer(0), group=grid.row)
        return received[0] if look.target_bare else received
