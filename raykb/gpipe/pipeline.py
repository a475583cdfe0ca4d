"""GPipe over processes: the stages of one model, each where it belongs, trained as one.

Every process of the grid builds the same :class:`Pipeline` and calls the same methods in the same
order. A step cuts its batch as ``Tensor.chunk`` does; equal micro-batches go through the schedule
together, and a smaller last one goes through by itself, so that any batch gives the gradient of
its mean loss exactly.

Paper: Huang et al., "GPipe", NeurIPS 2019, arXiv:1811.06965; Kim et al., "torchgpipe",
arXiv:2004.09910. Schedules and sends are those of ``torch.distributed.pipelining``.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
)

from raykb.engine.faults import add_note
from raykb.engine.messages import gathered
from raykb.engine.seeding import stream_seed
from raykb.gpipe.batchnorm import DeferredBatchNorm, commit_statistics, deferred_layers
from raykb.gpipe.check import pipeline_problems
from raykb.gpipe.checkpointing import CHECKPOINTS
from raykb.gpipe.feed import Fed
from raykb.gpipe.grid import Grid
from raykb.gpipe.links import LocalPortal, Portal, RemotePortal
from raykb.gpipe.materialise import materialise
from raykb.gpipe.microbatch import gather
from raykb.gpipe.modes import precision
from raykb.gpipe.partition import Partition, Value, cut
from raykb.gpipe.probe import Boundaries, Spec, as_tuple, probe
from raykb.gpipe.schedule import SCHEDULES, SPLIT, as_run, exempt, runnable, stages_of, worker_of
from raykb.gpipe.splitting import split_problems
from raykb.gpipe.stage import Crossing, Recorder, Stage, StageBody, Wiring
from raykb.gpipe.trace import Span
from raykb.parts.skip import SkipKey, skip_routes

Loss = Callable[[Value, Any, int], dict[str, Tensor]]
"""``loss(output, target, step)`` gives the terms of a micro-batch; means over its samples."""

_KEPT_RUNS = 8


@dataclass
class _Run:
    """Stages and schedule for one shape and number of micro-batches."""

    stages: list[Stage]
    schedule: Any
    name: str
    portals: list[Portal]


@dataclass(frozen=True)
class _Piece:
    """Equal micro-batches: first row, rows of each, their number, micro-batches before them."""

    first: int
    size: int
    count: int
    done: int


class Pipeline:
    """The stages of this process, connected to those of the others.

    Args:
        layers: (name, layer) of the whole model, in order, the same in every process; on the meta
            device, or real.
        balance: layers of each stage.
        grid: who does what; there are as many stages as workers, or more with the schedules that
            allow it.
        loss: gives the terms of a micro-batch on the last stage; ``loss`` among them is minimised.
        micro_batches: pieces that a batch is cut into, at most.
        schedule: ``gpipe`` (last micro-batch back first, as in the paper's library),
            ``gpipe_fifo``, ``1f1b``, ``interleaved``, ``zero_bubble`` or ``zbv``.
        checkpoint: which micro-batches are recomputed: ``always``, ``except_last`` (all but the one
            that is back-propagated first) or ``never``.
        skip: how skips reach stages of other workers: by a ``portal`` straight there, or along the
            wire as a ``tuple`` through the stages between.
        seed: of initial weights and of everything random in the layers.
        device: of this process.
        autocast: the type of automatic mixed precision, in which activations travel then; None
            for full precision.
        deferred_batch_norm: let batch norm keep the statistics of whole mini-batches. Without it
            every micro-batch counts as one, and again when it is recomputed.

    Raises:
        ValueError: the arguments do not fit; every problem is named.

    Attributes:
        module: this process's layers under the names of the whole model.
        recorder: of the last step.
        loss_scale: factor of the loss that is back-propagated; the terms have none.
        stages: their number; one if there is one worker.
        schedule: that full batches run.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, nn.Module]],
        balance: Sequence[int],
        *,
        grid: Grid,
        loss: Loss,
        micro_batches: int,
        schedule: str = "gpipe",
        checkpoint: Literal["always", "except_last", "never"] = "except_last",
        skip: Literal["portal", "tuple"] = "portal",
        seed: int = 0,
        device: torch.device | str = "cpu",
        autocast: torch.dtype | None = None,
        deferred_batch_norm: bool = True,
    ) -> None:
        self.grid = grid
        self._loss, self._micro_batches = loss, micro_batches
        self._checkpoint, self._skip, self._seed = checkpoint, skip, seed
        self._device, self._autocast = torch.device(device), autocast
        _refuse(layers, balance, grid, micro_batches, schedule, checkpoint, skip)
        if deferred_batch_norm:
            convert = DeferredBatchNorm.convert_deferred_batch_norm
            layers = [(name, convert(layer, chunks=None)) for name, layer in layers]
        balance, self.schedule = as_run(balance, schedule, grid.workers)
        pieces = cut(layers, balance)
        self.stages = len(pieces)
        self._per_worker = self.stages // grid.workers
        own = stages_of(grid.worker, self.stages, grid.workers, self.schedule)
        self._parts = {
            index: materialise(Partition(pieces[index]), seed, self._device) for index in own
        }
        self._meta = [Partition(_on_meta(piece)) for piece in pieces]
        self.module = Partition([layer for part in self._parts.values() for layer in part.layers])
        self._routes = skip_routes([list(part) for part in self._meta])
        self._groups = grid.pair_groups(
            [(self._worker_of(source), self._worker_of(to)) for source, to in self._remote()]
        )
        self._runs: OrderedDict[Any, _Run] = OrderedDict()
        self.recorder = Recorder(self._device)
        self.loss_scale = 1.0
        self._now: Any = None
        self._terms: dict[str, Tensor] = {}
        self._names: list[str] = []

    @property
    def first(self) -> bool:
        """Whether this process has the first stage, which is given the inputs."""
        return 0 in self._parts

    @property
    def last(self) -> bool:
        """Whether this process has the last stage, which is given the targets."""
        return self.stages - 1 in self._parts

    @property
    def last_worker(self) -> int:
        """The worker that has the last stage."""
        return self._worker_of(self.stages - 1)

    def step(self, batch: Fed, number: int, *, align: bool = False) -> dict[str, Tensor]:
        """Run forward and backward of one batch; the gradients are those of its mean loss.

        With replicas they are each one's share, which
        :func:`~raykb.gpipe.gradients.sum_over_replicas` sums.

        Args:
            batch: this replica's share of the batch, from a :class:`~raykb.gpipe.feed.Feed`.
            number: of the optimizer step, which the random layers depend on.
            align: let all processes begin together, so that their spans have one origin.

        Returns:
            the terms of the whole batch, of all replicas, on every process.

        Raises:
            Exception: what a layer raised, as it was raised, with a note of its stage and
                micro-batch.
        """
        self.module.train()
        self._terms = {}
        if align:
            dist.barrier(self.grid.row)
        self.recorder.begin()
        for layer in deferred_layers(self.module):
            layer.discard()  # what a step that failed saw
        for piece in self._pieces(batch.rows):
            self._forward_backward(batch, piece, number)
        commit_statistics(self.module, self.grid.column if self.grid.replicas > 1 else None)
        return self.shared(self._terms)

    @torch.no_grad()
    def predict(self, batch: Fed) -> Value | None:
        """Return the model's output for a batch of any size on the last stage; None elsewhere.

        Raises:
            ValueError: the batch has no sample.
            Exception: what a layer raised, as :meth:`step` does.
        """
        if batch.rows == 0:
            raise ValueError("batch: 0 samples, must be at least 1: there is nothing to predict")
        self.module.eval()
        self.recorder.begin()
        outputs: list[Value] = []
        for piece in self._pieces(batch.rows):
            run = self._prepared(batch, piece, training=False)
            self._begin(run, piece, self._seed, "predict")
            self._execute(run, batch, piece, {})
            outputs += [output for stage in run.stages for output in stage.body.outputs]
        return gather(outputs) if self.last else None

    def spans(self) -> list[list[Span]]:
        """Return what each worker of this pipeline did in the last step, on every one of them."""
        own = self.recorder.spans()
        found = gathered(own, group=self.grid.row, device=self._device)
        return [[Span(*span) for span in spans] for spans in found]

    def _pieces(self, rows: int) -> list[_Piece]:
        """Return the equal micro-batches of ``Tensor.chunk``, and a smaller last one."""
        if rows == 0:
            return []
        size = -(-rows // self._micro_batches)
        full, rest = divmod(rows, size)
        equal = _Piece(first=0, size=size, count=full, done=0)
        return [equal, _Piece(full * size, rest, 1, full)] if rest else [equal]

    def _forward_backward(self, batch: Fed, piece: _Piece, number: int) -> None:
        """Run one schedule over equal micro-batches."""
        run = self._prepared(batch, piece, training=True)
        first, size, count = piece.first, piece.size, piece.count
        self._begin(run, piece, self._seed, "draw", number, self.grid.replica)
        targets = None
        if self.last and batch.targets is not None:
            targets = [_rows(batch.targets, first + i * size, size) for i in range(count)]
        self._now = (targets, size / batch.total, number)
        marks = {"target": torch.arange(count)} if self.last else {}
        self._execute(run, batch, piece, marks)

    def _begin(self, run: _Run, piece: _Piece, seed: int, *place: int | str) -> None:
        """Tell the stages which micro-batches are checkpointed, and the seeds of random layers."""
        kept = exempt(self._checkpoint, run.name, piece.count)

        def seed_of(micro_batch: int) -> Callable[[str], int]:
            return functools.partial(stream_seed, seed, *place, piece.done + micro_batch)

        for stage in run.stages:
            stage.body.begin(lambda micro_batch: micro_batch not in kept, seed_of)

    def _micro_loss(self, output: Value, mark: Tensor) -> Tensor:
        """Return a micro-batch's part of the loss; ``mark`` is its number."""
        targets, share, number = self._now
        target = None if targets is None else targets[int(mark)]
        try:
            with precision(self._device.type, self._autocast):
                terms = self._loss(output, target, number)
        except Exception as error:
            self.recorder.fail(error, self.stages - 1, int(mark), "loss")
            raise
        for name, term in terms.items():
            if name not in self._terms:
                self._terms[name] = torch.zeros((), dtype=torch.float64, device=self._device)
            self._terms[name].add_(term.detach(), alpha=share)
        scaled: Tensor = terms["loss"] * (share * self.loss_scale)
        return scaled

    def _execute(self, run: _Run, batch: Fed, piece: _Piece, marks: dict[str, Tensor]) -> None:
        """Run a schedule; raise what a layer raised, before torch wrapped it."""
        self.recorder.first = piece.done
        inputs: tuple[Tensor, ...] = ()
        if self.first and batch.inputs is not None:
            inputs = as_tuple(_rows(batch.inputs, piece.first, piece.size * piece.count))
        failure = None
        try:
            run.schedule.step(*inputs, **marks, return_outputs=False)
        except Exception as error:
            failure = self.recorder.failure or error
        if failure is not None:
            self._runs.clear()  # torch's stages and schedules are in the middle of a step
            raise failure  # here, so that its causes are those that it had
        for portal in run.portals:
            portal.close()

    def _prepared(self, batch: Fed, piece: _Piece, *, training: bool) -> _Run:
        """Return stages and schedule for such a piece, made once for each shape."""
        specs = tuple(Spec((piece.size, *spec.shape[1:]), spec.dtype) for spec in batch.specs)
        key = (specs, batch.bare, piece.count, training)
        if key not in self._runs:
            boundaries = self._probed(specs, batch.bare, training)
            if training and self.schedule in SPLIT:
                self._refuse_unable(specs, batch.bare)
            self._runs[key] = self._connected(boundaries, piece.count, training)
        self._runs.move_to_end(key)
        while len(self._runs) > _KEPT_RUNS:
            self._runs.popitem(last=False)
        return self._runs[key]

    def _probed(self, specs: Sequence[Spec], bare: bool, training: bool) -> Boundaries:
        """Return what passes between the stages; raise what a layer raises, and where."""
        for part in self._meta:
            part.train(training)
        try:
            return probe(self._meta, specs, bare=bare, travel=self._autocast)
        except ValueError as error:
            failure = error.__cause__ or error
            add_note(failure, str(error))
        finally:
            for part in self._meta:
                for layer in deferred_layers(part):
                    layer.discard()
        raise failure

    def _refuse_unable(self, specs: Sequence[Spec], bare: bool) -> None:
        """Raise ValueError with the layers that cannot split their backward pass."""
        layers = [layer for part in self._meta for layer in part.layers]
        problems = split_problems(layers, specs, bare=bare)
        for layer in [norm for part in self._meta for norm in deferred_layers(part)]:
            layer.discard()
        if problems:
            raise ValueError("\n".join(problems))

    def _connected(self, boundaries: Boundaries, count: int, training: bool) -> _Run:
        """Return new stages, their portals and their schedule."""
        own = sorted(self._parts)
        portals = self._portals(boundaries)
        name = self._name(count) if training else self._plain()
        ahead = None
        if self._device.type == "cpu" and len(own) == 1:
            ahead = count, (-1 if name == "gpipe" else 1)
        stages = []
        for index in own:
            wiring = Wiring(
                index,
                index == self.stages - 1,
                boundaries,
                carried_in=self._carried(boundaries, index),
                carried_out=self._carried(boundaries, index + 1),
                collected=[Crossing(p, k) for (_, to), (p, k) in portals.items() if to == index],
                posted=[Crossing(p, k) for (of, _), (p, k) in portals.items() if of == index],
            )
            body = StageBody(
                self._parts[index], wiring, self.recorder, self._device, self._autocast
            )
            stages.append(
                Stage(
                    body,
                    wiring,
                    self.stages,
                    backward=training,
                    group=self.grid.row,
                    recorder=self.recorder,
                    device=self._device,
                    ahead=ahead,
                )
            )
        schedule = _schedule(name, stages, count, self._micro_loss if training else None)
        return _Run(stages, schedule, name, [portal for portal, _ in portals.values()])

    def _name(self, count: int) -> str:
        """Return the schedule that ``count`` micro-batches run: the chosen one if it can."""
        able = runnable(self.schedule, self.stages, count, self._per_worker)
        return self.schedule if able else self._plain()

    def _plain(self) -> str:
        """Return a schedule for any number of micro-batches, of stages where these are."""
        if self.schedule == "zbv":
            return "zbv"
        return "gpipe" if self._per_worker > 1 else "gpipe_fifo"

    def _worker_of(self, stage: int) -> int:
        return worker_of(stage, self.grid.workers, self.schedule)

    def _by_portal(self, source: int, destination: int) -> bool:
        """Return whether skips between two stages leave the wire."""
        if self._worker_of(source) == self._worker_of(destination):
            return True
        return self._skip == "portal" and destination - source > 1

    def _remote(self) -> list[tuple[int, int]]:
        """Return the pairs of stages of different workers that a portal connects."""
        routes = dict.fromkeys(self._routes.values())
        return [
            route
            for route in routes
            if self._by_portal(*route) and self._worker_of(route[0]) != self._worker_of(route[1])
        ]

    def _carried(self, boundaries: Boundaries, index: int) -> list[SkipKey]:
        """Return the skips on the wire that enters stage ``index``."""
        return [
            key
            for key, (source, destination) in self._routes.items()
            if source < index <= destination
            and not self._by_portal(source, destination)
            and boundaries.skips[key] is not None
        ]

    def _portals(
        self, boundaries: Boundaries
    ) -> dict[tuple[int, int], tuple[Portal, list[SkipKey]]]:
        """Return the portals of this process, by the stages that they connect, with their skips."""
        found: dict[tuple[int, int], tuple[Portal, list[SkipKey]]] = {}
        groups = dict(zip(self._remote(), self._groups, strict=True))
        for route in dict.fromkeys(self._routes.values()):
            keys = [
                key
                for key, other in self._routes.items()
                if other == route and boundaries.skips[key] is not None
            ]
            here = [index for index in route if index in self._parts]
            if not keys or not here or not self._by_portal(*route):
                continue
            specs = [boundaries.skip(key) for key in keys]
            if len(here) == 2:
                found[route] = (LocalPortal(specs), keys)
                continue
            other = route[1] if here[0] == route[0] else route[0]
            peer = self.grid.peer(self._worker_of(other))
            found[route] = (RemotePortal(specs, peer, groups[route], self._device), keys)
        return found

    def shared(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms of the last stages, summed over replicas, on every process.

        Their names are those of the first call that finds any, of whichever process: a replica may
        have had no sample.
        """
        if not self._names:
            names = gathered(sorted(terms), device=self._device)
            self._names = sorted({name for own in names for name in own})
        if not self._names:
            return {}
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        values = torch.stack([terms.get(name, zero) for name in self._names])
        if dist.get_world_size() > 1:
            dist.all_reduce(values)
        return dict(zip(self._names, values.unbind(), strict=True))


def _refuse(
    layers: Sequence[tuple[str, nn.Module]],
    balance: Sequence[int],
    grid: Grid,
    micro_batches: int,
    schedule: str,
    checkpoint: str,
    skip: str,
) -> None:
    """Raise ValueError with all that is wrong with the arguments of a pipeline."""
    stages, workers = len(balance), grid.workers
    found = pipeline_problems(
        layers,
        stages=stages,
        micro_batches=micro_batches,
        batch_size=1,
        schedule=schedule if workers > 1 or schedule not in SCHEDULES else "gpipe",
        stages_per_worker=max(1, stages // workers),
        balance=balance,
        checkpoint=checkpoint,
    )
    if stages % workers:
        found.append(
            f"balance: {stages} stages, must be a multiple of the {workers} workers of the grid"
        )
    for name, value, allowed in (
        ("checkpoint", checkpoint, CHECKPOINTS),
        ("skip", skip, ("portal", "tuple")),
    ):
        if value not in allowed:
            found.append(f"{name}: {value!r}, must be one of {', '.join(allowed)}")
    if found:
        raise ValueError("\n".join(found))


def _on_meta(piece: Sequence[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    return [(name, copy.deepcopy(layer).to("meta")) for name, layer in piece]


def _rows(value: Value, first: int, count: int) -> Value:
    if isinstance(value, Tensor):
        return value[first : first + count]
    return tuple(tensor[first : first + count] for tensor in value)


def _schedule(name: str, stages: list[Stage], count: int, loss: Any) -> Any:
    """Return torch's schedule of that name; gradients are left as sums."""
    several = {
        "gpipe": ScheduleLoopedBFS,  # with one stage a worker, breadth first is the paper's order
        "interleaved": ScheduleInterleaved1F1B,
        "zero_bubble": ScheduleInterleavedZeroBubble,
        "zbv": ScheduleZBVZeroBubble,
    }
    if name in several:
        return several[name](list(stages), count, loss, scale_grads=False)
    single = {"gpipe_fifo": ScheduleGPipe, "1f1b": Schedule1F1B}[name]
    return single(stages[0], count, loss, scale_grads=False)
