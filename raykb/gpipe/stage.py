"""One stage of a pipeline as torch.distributed.pipelining sees it.

    wire -> [1] enter -> [2] collect skips -> [3] the layers -> [4] post skips -> [5] leave -> wire

[3] alone is recomputed where a micro-batch is checkpointed: what has been sent is not sent again.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from raykb.engine.faults import add_note
from raykb.gpipe.checkpointing import checkpoint
from raykb.gpipe.links import Portal, check_shapes, collect, enter, leave, post, wire_spec
from raykb.gpipe.modes import precision
from raykb.gpipe.partition import Partition, SeedOf, Skips
from raykb.gpipe.probe import Boundaries, Spec, as_tuple
from raykb.gpipe.trace import Span
from raykb.parts.skip import SkipKey


@dataclass
class Recorder:
    """What happened while a schedule ran: spans of time, and the first failure.

    Attributes:
        device: whose clock counts.
        first: number of the run's first micro-batch within the step.
        failure: the exception that a stage raised, before anyone wraps it.
    """

    device: torch.device
    first: int = 0
    failure: Exception | None = None
    _marks: list[tuple[str, int, int, Any, Any]] = field(default_factory=list)
    _origin: Any = None

    def begin(self) -> None:
        """Forget all; times count from now."""
        self._marks, self.failure, self._origin = [], None, self._now()

    @contextlib.contextmanager
    def watch(self, kind: str, stage: int, micro_batch: int) -> Iterator[None]:
        """Record the time of what is done inside, or its failure with its place."""
        start = self._now()
        try:
            yield
        except Exception as error:
            # Torch wraps what backward passes raise, but not those of the weights alone.
            wrapped = kind in "BI" or (kind == "W" and stage == 0)
            cause = error.__cause__ if wrapped and error.__cause__ is not None else error
            self.fail(cause, stage, micro_batch, "forward" if kind == "F" else "backward")
            raise
        self._marks.append((kind, stage, self.first + micro_batch, start, self._now()))

    def fail(self, error: BaseException | None, stage: int, micro_batch: int, way: str) -> None:
        """Note where an exception happened, and keep it if it is the first."""
        if self.failure is None and isinstance(error, Exception):
            self.failure = error
            add_note(error, f"stage {stage}, micro-batch {self.first + micro_batch}, {way}")

    def spans(self) -> list[Span]:
        """Return the spans since :meth:`begin`, in seconds from then."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [
            Span(kind, stage, number, self._seconds(start), self._seconds(end))
            for kind, stage, number, start, end in self._marks
        ]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, mark: Any) -> float:
        if self.device.type != "cuda":
            return float(mark - self._origin)
        return float(self._origin.elapsed_time(mark)) / 1e3


@dataclass(frozen=True)
class Crossing:
    """Skips that a stage exchanges with another one through a portal."""

    portal: Portal
    keys: Sequence[SkipKey]


@dataclass(frozen=True)
class Wiring:
    """How one stage is connected, for one shape of micro-batch.

    Attributes:
        index: of the stage.
        last: whether its output is the model's.
        boundaries: of the whole pipeline.
        carried_in: skips that reach it along the wire, in order; none that is None.
        carried_out: skips that leave it along the wire, in order.
        collected: what it collects from portals.
        posted: what it posts to portals.
    """

    index: int
    last: bool
    boundaries: Boundaries
    carried_in: Sequence[SkipKey]
    carried_out: Sequence[SkipKey]
    collected: Sequence[Crossing]
    posted: Sequence[Crossing]

    def specs(self, *, entering: bool) -> list[Spec]:
        """Return the tensors that enter or leave, as they are."""
        keys = self.carried_in if entering else self.carried_out
        skips = [self.boundaries.skip(key) for key in keys]
        return [*self.boundaries.values[self.index + (not entering)], *skips]

    def wire(self, *, entering: bool) -> list[Spec]:
        """Return the tensors that enter or leave, as they travel."""
        outside = self.index == 0 if entering else self.last
        specs = self.specs(entering=entering)
        return specs if outside else [wire_spec(spec) for spec in specs]


class StageBody(nn.Module):
    """The module of one stage: called once for each micro-batch, in order.

    Args:
        part: the stage's layers.
        wiring: its connections.
        recorder: gets spans and failures.
        device: of the stage.
        autocast: the type of automatic mixed precision, or None.
    """

    def __init__(
        self,
        part: Partition,
        wiring: Wiring,
        recorder: Recorder,
        device: torch.device,
        autocast: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.part = part
        self._wiring, self._recorder, self._device = wiring, recorder, device
        self._autocast = autocast
        # What is the same for all micro-batches is found once: every stage waits for the others.
        skips = wiring.boundaries.skips
        self._given = [key for key in part.popped if skips[key] is not None]
        self._kept = [key for key in part.stashed if skips[key] is not None]
        self._entering, self._leaving = (wiring.specs(entering=way) for way in (True, False))
        self._wire_out = wiring.wire(entering=False)
        self._phony = torch.empty(0, device=device, requires_grad=True)
        self._number = 0
        self._checkpointed: Callable[[int], bool] = lambda number: False
        self._seed_of: Callable[[int], SeedOf] = lambda number: lambda name: 0
        self.outputs: list[Any] = []

    def begin(self, checkpointed: Callable[[int], bool], seed_of: Callable[[int], SeedOf]) -> None:
        """Prepare for a run.

        Args:
            checkpointed: tells whether a micro-batch is.
            seed_of: gives the seeds of a micro-batch's layers.
        """
        self._number, self._checkpointed, self._seed_of = 0, checkpointed, seed_of
        self.outputs = []

    def forward(self, *wire: Tensor) -> Any:
        """Return what leaves the stage for one micro-batch; a tuple as it travels."""
        number, self._number = self._number, self._number + 1
        with self._recorder.watch("F", self._wiring.index, number):
            return self._forward(number, wire)

    def _forward(self, number: int, wire: tuple[Tensor, ...]) -> Any:
        wiring, boundaries = self._wiring, self._wiring.boundaries
        phony = self._phony
        phonies = [phony]
        if wiring.index > 0:  # [1]
            entered, wire = enter(wire, self._entering)
            phonies.append(entered)
            phony = entered  # what hangs on it is reached on the way to the inputs' gradients
        main = wire[: len(boundaries.values[wiring.index])]
        arrived = dict(zip(wiring.carried_in, wire[len(main) :], strict=True))
        for crossing in wiring.collected:  # [2]
            after, tensors = collect(crossing.portal, number, phony)
            arrived |= zip(crossing.keys, tensors, strict=True)
            phonies.append(after)
        value, left = self._run(number, main, arrived)  # [3]
        left = arrived | left
        for crossing in wiring.posted:  # [4]
            skips = [left[key] for key in crossing.keys]
            check_shapes(skips, crossing.portal.specs)
            phonies.append(post(crossing.portal, number, phony, skips))
        values = [*value, *(left[key] for key in wiring.carried_out)]
        if not wiring.last:
            check_shapes(values, self._leaving)
        out = leave(values, self._wire_out, phonies)  # [5]
        if not wiring.last:
            return out
        result = out[0] if boundaries.bare[-1] else out
        if not torch.is_grad_enabled():
            self.outputs.append(result)
        return result

    def _run(
        self, number: int, main: tuple[Tensor, ...], arrived: dict[SkipKey, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[SkipKey, Tensor]]:
        """Run the layers, checkpointed or not; return their value and the skips that they leave."""
        part, boundaries = self.part, self._wiring.boundaries
        seed_of = self._seed_of(number)
        given, kept = self._given, self._kept
        bare = boundaries.bare[self._wiring.index]

        again = torch.is_grad_enabled() and self._checkpointed(number)
        spared = again and boundaries.overwrites[self._wiring.index]

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            if spared:  # what runs again must find its inputs as they were
                tensors = tuple(tensor.clone() for tensor in tensors)
            skips: Skips = dict.fromkeys(part.popped)
            skips |= zip(given, tensors[len(main) :], strict=True)
            value, left = part(tensors[0] if bare else tensors[: len(main)], skips, seed_of)
            return (*as_tuple(value), *(skip for skip in left.values() if skip is not None))

        inputs = [*main, *(arrived[key] for key in given)]
        with precision(self._device.type, self._autocast):
            outputs = checkpoint(run, *inputs) if again else run(*inputs)
        count = len(outputs) - len(kept)
        return outputs[:count], dict(zip(kept, outputs[count:], strict=True))


class _Ahead:
    """Receives that are posted one micro-batch before torch's schedule asks for them.

    Gloo moves nothing before both sides have called, so a schedule that asks when it needs a
    tensor waits for the whole way of it, and lets its sender wait. What is posted in time arrives
    while the stage computes.

    Args:
        ops: gives the receives of a micro-batch.
        step: from a micro-batch to the next one that is sent.
        count: number of micro-batches.
    """

    def __init__(self, ops: Callable[[int], list[dist.P2POp]], step: int, count: int) -> None:
        self._ops, self._step, self._count = ops, step, count
        self._posted: dict[int, list[Any]] = {}

    def post(self, micro_batch: int) -> None:
        """Post the receives of a micro-batch and of the next one, each once."""
        for number in (micro_batch, micro_batch + self._step):
            if number not in self._posted and 0 <= number < self._count:
                self._posted[number] = [
                    op.op(op.tensor, op.peer, group=op.group) for op in self._ops(number)
                ]

    def wait(self, micro_batch: int) -> None:
        """Return when the tensors of a micro-batch are here."""
        for work in self._posted.pop(micro_batch):
            work.wait()


class Stage(PipelineStage):
    """A stage with static shapes whose backward passes are recorded too.

    Args:
        body: the stage's module.
        wiring: its connections.
        stages: number of stages of the pipeline.
        backward: whether a backward pass follows.
        group: the pipeline's processes.
        recorder: gets spans and failures.
        device: of the stage.
        ahead: (micro-batches, step from one to the next in backward) to post receives ahead of
            the schedule. Not for several stages in a worker, whose messages share one way, nor for
            NCCL, which keeps to the order of the calls.
    """

    def __init__(
        self,
        body: StageBody,
        wiring: Wiring,
        stages: int,
        *,
        backward: bool,
        group: Any,
        recorder: Recorder,
        device: torch.device,
        ahead: tuple[int, int] | None = None,
    ) -> None:
        first = wiring.index == 0
        super().__init__(
            body,
            wiring.index,
            stages,
            device,
            input_args=_examples(wiring.wire(entering=True), backward and not first),
            output_args=_examples(wiring.wire(entering=False), backward),
            group=group,
        )
        self.body = body
        self._recorder = recorder
        self._forward_ahead = self._backward_ahead = None
        if ahead is not None:
            count, step = ahead
            self._forward_ahead = _Ahead(super().get_fwd_recv_ops, 1, count)
            self._backward_ahead = _Ahead(super().get_bwd_recv_ops, step, count)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the receives that a forward pass needs and that the schedule is to post."""
        if self._forward_ahead is None:
            return super().get_fwd_recv_ops(fwd_chunk_id)
        self._forward_ahead.post(fwd_chunk_id)
        return []

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the receives that a backward pass needs and that the schedule is to post."""
        if self._backward_ahead is None:
            return super().get_bwd_recv_ops(bwd_chunk_id)
        self._backward_ahead.post(bwd_chunk_id)
        return []

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run one micro-batch forward as torch does, once its inputs are here."""
        if self._forward_ahead is not None and not self.is_first:
            self._forward_ahead.wait(fwd_chunk_id)
        return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Back-propagate one micro-batch as torch does, and record it."""
        if not self.has_backward:
            return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        if self._backward_ahead is not None and not self.is_last:
            self._backward_ahead.wait(bwd_chunk_id)
        kind = "B" if kwargs.get("full_backward", True) else "I"
        with self._recorder.watch(kind, self.stage_index, bwd_chunk_id):
            return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Find the gradients of the weights as torch does, and record it."""
        if not self.has_backward:
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)
        with self._recorder.watch("W", self.stage_index, bwd_chunk_id):
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)

    def get_local_bwd_output(self, mb_index: int) -> Any:
        """Return the gradients for a stage before that is here, too; none without backward."""
        if not self.has_backward:
            return ()
        return super().get_local_bwd_output(mb_index)  # type: ignore[no-untyped-call]

    def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
        """Take the gradients of a stage behind that is here, too; none without backward."""
        if self.has_backward:
            super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)


def _examples(specs: Sequence[Spec], requires_grad: bool) -> tuple[Tensor, ...]:
    """Return tensors without memory that look like those of ``specs``."""
    return tuple(
        spec.empty().requires_grad_(requires_grad and spec.dtype.is_floating_point)
        for spec in specs
    )
