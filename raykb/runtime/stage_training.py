"""The training of a pipeline as each of its workers takes part in it.

own layers -> Pipeline -> Training, which runtime.work repeats, saves and restores
"""

import contextlib
import functools
import json
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from torch import Tensor, nn

from raykb.config import build
from raykb.engine.foreign import parsed
from raykb.engine.loop import Evaluated, Shard, Training, Worker
from raykb.engine.messages import gathered, told
from raykb.engine.objective import Objective
from raykb.engine.optim import OPTIMIZERS, SCHEDULES, NamedOptimizer, scheduled
from raykb.engine.recipe import Lengths, Recipe
from raykb.gpipe.costs import Costs
from raykb.gpipe.feed import Fed, Feed
from raykb.gpipe.gradients import LossScaler, clip_over_stages, sum_over_replicas
from raykb.gpipe.grid import Grid, make_grid
from raykb.gpipe.modes import precision
from raykb.gpipe.partition import Value
from raykb.gpipe.pipeline import Pipeline
from raykb.gpipe.speed import relative_speeds
from raykb.gpipe.trace import Span, efficiency
from raykb.runtime.stages import MIB, PipelineSettings, layers_of
from raykb.runtime.storage import open_storage

SPANS, SPEEDS = "spans.json", "speeds.json"
_TRACED_STEPS = 5
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_IDENTITY = nn.Identity()

Loss = Callable[[Value, Any, int], dict[str, Tensor]]
"""``loss(outputs, targets, step)`` returns the terms of a micro-batch, means over its samples."""


class Batches(Protocol):
    """What the first stage reads; :class:`raykb.data.batches.LabelledImages` is one."""

    def training(self, start: int, share: int, shares: int) -> Iterator[tuple[Value, Value, int]]:
        """Yield inputs, targets and size of the whole batch for steps start, start + 1, …."""
        ...

    def testing(self, share: int, shares: int) -> Iterator[tuple[Value, Value, int]]:
        """Yield inputs, targets and the number of all test samples."""
        ...


@dataclass(frozen=True)
class Source:
    """Where the first stage gets its batches; the other stages fetch nothing.

    Attributes:
        build: makes :class:`Batches` on a device.
        arguments: of ``build`` besides ``device``; large ones as references from
            :func:`raykb.runtime.train.share`.
    """

    build: Callable[..., Batches]
    arguments: dict[str, Any]

    def open(self, device: torch.device) -> Batches:
        """Return the batches, for a first stage on ``device``."""
        fetched = {
            name: ray.get(value) if isinstance(value, ray.ObjectRef) else value
            for name, value in self.arguments.items()
        }
        return self.build(**fetched, device=device)


def stage_training(
    worker: Worker,
    *,
    network: Callable[[], nn.Sequential],
    objective: Objective,
    source: Source,
    lengths: Lengths,
    recipe: Recipe,
    settings: PipelineSettings,
    costs: Costs,
    optimizer: dict[str, Any],
    schedule: dict[str, Any],
    seed: int,
    uri: str,
) -> Training:
    """Return the training of a pipeline as one of its workers takes part in it.

    Args:
        worker: its place; stages follow from the number of workers.
        network: builds the model, the same in every process.
        objective: gives the terms of a micro-batch; it is called with the identity as the model and
            (outputs, targets) as the batch, and its terms are means over samples.
        source: of batches.
        lengths: the recipe in steps.
        recipe: how to train.
        settings: of the pipeline.
        costs: of the layers, which the balance is made of.
        optimizer: a row of ``OPTIMIZERS`` by ``name``, with its arguments.
        schedule: a row of ``SCHEDULES`` by ``name``, with its arguments.
        seed: of weights and of random layers.
        uri: folder for the spans of the last steps.
    """
    before, device, autocast = _memory(worker.device), worker.device, _AUTOCAST[recipe.precision]
    workers = worker.size // settings.replicas
    grid = make_grid(workers, settings.replicas, timeout_s=settings.timeout_s)
    speeds = _speeds(grid, device, uri) if settings.balance == "time" else None
    loss = _loss_of(objective.to(device))
    balance = settings.cut(costs, workers, speeds)
    pipeline = Pipeline(
        layers_of(network, seed),
        balance,
        grid=grid,
        loss=loss,
        micro_batches=settings.micro_batches,
        schedule=settings.schedule,
        checkpoint=settings.checkpoint,
        skip=settings.skip,
        seed=seed,
        device=device,
        autocast=autocast,
        deferred_batch_norm=settings.deferred_batch_norm,
    )
    part = _Part(
        pipeline,
        grid,
        loss,
        Feed(grid, pipeline.last_worker, device),
        source.open(device) if grid.worker == 0 else None,
        steps=lengths.steps,
        scaler=LossScaler() if recipe.precision == "fp16" else None,
        precision=functools.partial(precision, device.type, autocast),
    )
    stepper = build(OPTIMIZERS, optimizer, model=pipeline.module)
    scheduler = scheduled(
        stepper, build(SCHEDULES, schedule), steps=lengths.steps, warmup_steps=lengths.warmup
    )

    def evaluate(split: str) -> Evaluated:
        found = {f"{split}/{name}": value for name, value in part.tested().items()}
        if split == "test":
            found |= _figures(part.traces, pipeline, settings, worker, before, uri)
            if speeds is not None:
                found |= {f"pipeline/speed-{rank}": own for rank, own in enumerate(speeds)}
                found |= {f"pipeline/layers-{stage}": count for stage, count in enumerate(balance)}
        return Evaluated(found)

    parts: dict[str, Any] = {
        "model": pipeline.module,
        "optimizer": NamedOptimizer(stepper, pipeline.module.named_parameters()),
        "scheduler": scheduler,
    }
    return Training(
        step=part.step,
        update=_updater(pipeline, grid, stepper, scheduler, part.scaler, recipe.clip_norm),
        batches=part.batches,
        steps=lengths.steps,
        parts=parts if part.scaler is None else parts | {"scaler": part.scaler},
        evaluate=evaluate,
        shard=Shard(saved=grid.replica == 0),
        save_every=lengths.save_every,
        log_every=lengths.log_every,
        evaluate_every=lengths.evaluate_every,
    )


def _speeds(grid: Grid, device: torch.device, uri: str) -> list[float] | None:
    """Return the speeds of the workers of a pipeline; None on one host, where they are alike.

    They stand beside the checkpoints, so that a run that goes on on the same hosts keeps its cut.
    """
    hosts = gathered(_host(), device=device)
    if len(set(hosts)) == 1:
        return None
    storage, kept = open_storage(uri), None
    if grid.rank == 0 and storage.exists(SPEEDS):
        record = parsed(storage.read(SPEEDS))
        kept = record["speeds"] if record["hosts"] == hosts else None
    if (known := told(kept, device=device)) is not None:
        return [float(speed) for speed in known]
    speeds = relative_speeds(grid, device)
    if grid.rank == 0:
        storage.write(SPEEDS, json.dumps({"hosts": hosts, "speeds": speeds}).encode())
    return speeds


def _host() -> str:
    return str(ray.util.get_node_ip_address()) if ray.is_initialized() else socket.gethostname()


def _loss_of(objective: Objective) -> Loss:
    def loss(outputs: Value, targets: Any, step: int) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = objective(_IDENTITY, objective.sees(outputs, targets), step)
        return terms

    return loss


@dataclass(eq=False)
class _Part:
    """What one worker does in the steps of a pipeline.

    Attributes:
        pipeline: its stages.
        grid: all workers.
        loss: of a micro-batch.
        feed: hands batches to the workers.
        read: what the first stage reads; None elsewhere.
        steps: of the training.
        scaler: of the loss; None without fp16.
        precision: a context for the loss of the test samples, of which no pipeline takes care.
        traces: spans of the last steps, over all workers.
    """

    pipeline: Pipeline
    grid: Grid
    loss: Loss
    feed: Feed
    read: Batches | None
    steps: int
    scaler: LossScaler | None
    precision: Callable[[], contextlib.AbstractContextManager[object]]
    traces: list[list[list[Span]]] = field(default_factory=list)

    def batches(self, start: int) -> Iterator[Fed]:
        """Yield what this worker is to know of the batches of steps start, start + 1, …."""
        share = self.grid.replica, self.grid.replicas
        return self._fed(self.read.training(start, *share) if self.read else None)

    def step(self, batch: Fed, number: int) -> dict[str, Tensor]:
        """Run a batch forth and back; return its terms."""
        self.pipeline.loss_scale = 1.0 if self.scaler is None else self.scaler.scale
        traced = self.steps - number <= _TRACED_STEPS + 1  # one more: the last may be smaller
        terms = self.pipeline.step(batch, number, align=traced)
        if traced:
            self.traces.append(self.pipeline.spans())
        return terms

    def tested(self) -> dict[str, float]:
        """Return the means of the terms over all test samples."""
        sums: dict[str, Tensor] = {}
        share = self.grid.replica, self.grid.replicas
        for batch in self._fed(self.read.testing(*share) if self.read else None):
            outputs = self.pipeline.predict(batch)
            if outputs is not None:
                with self.precision():
                    terms = self.loss(outputs, batch.targets, self.steps)
                for name, term in terms.items():
                    part = term.detach().double() * (batch.rows / batch.total)
                    sums[name] = sums.get(name, 0.0) + part
        return {name: float(value) for name, value in self.pipeline.shared(sums).items()}

    def _fed(self, own: Iterator[tuple[Value, Value, int]] | None) -> Iterator[Fed]:
        while (batch := self.feed(None if own is None else next(own, None))) is not None:
            yield batch


def _updater(
    pipeline: Pipeline,
    grid: Grid,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    scaler: LossScaler | None,
    clip_norm: float | None,
) -> Callable[[int], dict[str, Any]]:
    """Return what follows each backward pass: sum, unscale, clip and step, alike on all stages."""
    parameters = list(pipeline.module.parameters())

    def update(step: int) -> dict[str, Any]:
        figures: dict[str, Any] = {"lr": optimizer.param_groups[0]["lr"]}
        if grid.replicas > 1:
            sum_over_replicas(parameters, grid.column)
        finite = True
        if scaler is not None:
            figures["loss_scale"] = scaler.scale
            finite = scaler.unscale(parameters)
            scaler.update(finite)
        if finite:
            if clip_norm is not None:
                figures["gradient_norm"] = clip_over_stages(parameters, clip_norm, grid.row)
            optimizer.step()
            scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return figures

    return update


def _figures(
    traces: Sequence[list[list[Span]]],
    pipeline: Pipeline,
    settings: PipelineSettings,
    worker: Worker,
    before: int,
    uri: str,
) -> dict[str, float]:
    """Return what a run was worth to its workers, and leave the spans of a middling step."""
    own = max(0, _memory(worker.device, peak=True) - before)
    peaks = gathered(own, device=worker.device)
    figures = {f"memory/worker-{rank}/peak_mib": peak / MIB for rank, peak in enumerate(peaks)}
    most = max((sum(map(len, spans)) for spans in traces), default=0)
    whole = sorted((t for t in traces if sum(map(len, t)) == most), key=_duration)
    if worker.rank > 0 or not whole:
        return figures
    spans = whole[len(whole) // 2]
    with contextlib.suppress(ValueError):  # so short a step ran another schedule
        found = efficiency(spans, pipeline.schedule, checkpoint=settings.checkpoint)
        figures |= {f"pipeline/{name}": value for name, value in found.items()}
    open_storage(uri).write(SPANS, json.dumps(spans).encode())
    return figures


def _duration(spans: Sequence[Sequence[Span]]) -> float:
    return max(span.end_s for row in spans for span in row)


def _memory(device: torch.device, *, peak: bool = False) -> int:
    """Return the bytes that this process has now, or had at most: of its GPU, or resident."""
    if device.type == "cuda":
        now, most = torch.cuda.memory_allocated, torch.cuda.max_memory_allocated
        return most(device) if peak else now(device)
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
