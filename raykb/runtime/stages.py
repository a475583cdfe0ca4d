"""Pipelines on Ray: what each worker of one builds, and what the driver settles before.

driver:   layers, checked -> costs, measured on a worker -> balance, predictions
workers:  own layers -> Pipeline -> Training, which runtime.work repeats, saves and restores
"""

import contextlib
import json
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
import torch
import torch.distributed as dist
from torch import Tensor, nn

from raykb.config import build
from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.loop import Evaluated, Shard, Training, Worker
from raykb.engine.objective import Objective
from raykb.engine.optim import OPTIMIZERS, SCHEDULES, NamedOptimizer, scheduled
from raykb.engine.recipe import Lengths, Recipe
from raykb.engine.seeding import seed_everything
from raykb.gpipe.check import boundary_problems, pipeline_problems
from raykb.gpipe.costs import By, Costs, measure
from raykb.gpipe.feed import Fed, Feed
from raykb.gpipe.gradients import LossScaler, clip_over_stages, sum_over_replicas
from raykb.gpipe.grid import Grid, make_grid
from raykb.gpipe.materialise import uninitialisable
from raykb.gpipe.modes import precision
from raykb.gpipe.partition import Value, flatten
from raykb.gpipe.pipeline import Pipeline
from raykb.gpipe.probe import Spec
from raykb.gpipe.schedule import as_run, runnable
from raykb.gpipe.trace import Span, efficiency
from raykb.runtime.connection import cluster_address
from raykb.runtime.resources import Group, WorkerResources, describe, fit, this_host
from raykb.runtime.storage import open_storage

SPANS = "spans.json"
_TRACED_STEPS = 5
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """How a model is laid out over workers; a section of the config.

    Args:
        stages: consecutive pieces of the model.
        replicas: equal pipelines, each with its share of every batch.
        micro_batches: pieces that a batch is cut into.
        schedule: ``gpipe`` (last micro-batch back first), ``gpipe_fifo``, ``1f1b`` or
            ``interleaved``.
        stages_per_worker: 1, or more with ``interleaved``.
        checkpoint: micro-batches that are recomputed in backward: ``always``, ``except_last`` (all
            but the one that is back-propagated first) or ``never``.
        balance: what is made equal over the stages, ``time``, ``size`` or ``parameters``; or the
            layers of each stage.
        skip: how skip connections cross stages: by a ``portal`` straight to their end, or as a
            ``tuple`` through the stages between.
        deferred_batch_norm: let batch norm keep the statistics of whole mini-batches.
        place: ``pack`` the workers on few nodes, or ``spread`` them over many.
        elastic: go on with fewer stages when nodes are lost and do not come back.
        timeout_s: seconds that a worker waits for another one.
        wait_s: seconds to wait for places for all workers, before each attempt.
    """

    stages: int = 2
    replicas: int = 1
    micro_batches: int = 8
    schedule: Literal["gpipe", "gpipe_fifo", "1f1b", "interleaved"] = "1f1b"
    stages_per_worker: int = 1
    checkpoint: Literal["always", "except_last", "never"] = "except_last"
    balance: By | list[int] = "time"
    skip: Literal["portal", "tuple"] = "portal"
    deferred_batch_norm: bool = True
    place: Literal["pack", "spread"] = "pack"
    elastic: bool = False
    timeout_s: int = 300
    wait_s: float = 60.0

    def __post_init__(self) -> None:
        numbers = ("stages", "replicas", "micro_batches", "stages_per_worker", "timeout_s")
        problems = misfits(self, **dict.fromkeys(numbers, at_least(1)), wait_s=at_least(0))
        if not problems and self.stages % self.stages_per_worker:
            problems.append(
                f"stages: {self.stages}, must be a multiple of stages_per_worker, "
                f"{self.stages_per_worker}"
            )
        refuse(problems)

    @property
    def workers(self) -> int:
        """Processes of all pipelines."""
        return self.stages // self.stages_per_worker * self.replicas

    @property
    def group(self) -> Group:
        """How the workers stand together."""
        held, fewer = self.stages_per_worker, range(1, self.workers // self.replicas)
        fit = [
            workers * self.replicas
            for workers in fewer
            if workers == 1 or runnable(self.schedule, workers * held, self.micro_batches, held)
        ]
        return Group(
            place=self.place,
            timeout_s=self.timeout_s,
            wait_s=self.wait_s,
            fewer=tuple(fit) if self.elastic else (),
        )

    @property
    def alone(self) -> bool:
        """Whether one worker has the whole model: it runs one stage, whatever ``stages`` says."""
        return self.workers == self.replicas

    def problems(
        self, layers: Sequence[tuple[str, nn.Module]], sample: Tensor, batch_size: int
    ) -> list[str]:
        """Return all that is wrong with such a pipeline, as far as it shows before Ray is there.

        Args:
            layers: of the model, on any device.
            sample: a micro-batch, of which shape and type matter.
            batch_size: of all replicas.
        """
        balance = self.balance if isinstance(self.balance, list) else None
        found = pipeline_problems(
            layers,
            stages=self.stages,
            micro_batches=self.micro_batches,
            batch_size=batch_size,
            schedule=self.schedule,
            stages_per_worker=self.stages_per_worker,
            balance=balance,
        )
        known = balance is not None and sum(balance) == len(layers) and min(balance) > 0
        anywhere = balance if balance is not None and known else [1] * len(layers)
        cuts = [len(layers)] if self.alone else anywhere
        return found + boundary_problems(layers, cuts, [Spec.of(sample)], skip=self.skip)

    def laid_out(self, costs: Costs) -> dict[str, Any]:
        """Return what will run, as predictions need to know it; layers of each stage first."""
        balance = costs.balance(self.balance, self.stages, checkpoint=self.checkpoint)
        workers = self.workers // self.replicas
        balance, schedule = as_run(balance, self.schedule, workers)
        return {
            "balance": balance,
            "schedule": schedule,
            "micro_batches": self.micro_batches,
            "checkpoint": self.checkpoint,
            "stages_per_worker": len(balance) // workers,
        }


@dataclass(frozen=True, kw_only=True)
class StageResources:
    """What one worker of a pipeline takes; a section of the config.

    Args:
        cpus: CPUs, and threads, of one worker.
        gpus: GPUs of one worker, 0 or 1.
    """

    cpus: int = 1
    gpus: float = 0.0

    def workers(self, count: int) -> WorkerResources:
        """Return what ``count`` workers take."""
        return WorkerResources(cpus=self.cpus, gpus=self.gpus, workers=count)

    def problems(self, count: int) -> list[str]:
        """Return what keeps workers from this host, where it is all that there is."""
        each, nodes = self.workers(count), this_host()
        if cluster_address() is not None or fit(count, each, nodes):
            return []
        return [
            f"stages: {count} workers of {each.cpus} CPU and {each.gpus:g} GPU, and there is "
            f"{describe(nodes)}"
        ]


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


def layers_of(network: Callable[[], nn.Sequential], seed: int) -> list[tuple[str, nn.Module]]:
    """Return the named layers of a model, on the meta device if each can initialise itself.

    A model with a layer that cannot is built for real, under ``seed``.
    """
    with torch.device("meta"):
        layers = flatten(network())
    if not uninitialisable(layers):
        return layers
    seed_everything(seed)
    return flatten(network())


def measured(
    network: Callable[[], nn.Sequential], sample: Tensor, seed: int, cpus: int, device: str
) -> Costs:
    """Return what the layers of a model cost with one micro-batch, measured in this process.

    Args:
        network: builds the model.
        sample: of the shape of a micro-batch.
        seed: of weights and of random layers.
        cpus: threads.
        device: where the layers run.
    """
    torch.set_num_threads(cpus)
    sample = torch.zeros_like(sample, device="cpu")
    return measure(layers_of(network, seed), sample, seed=seed, device=device)


def state_tensors(optimizer: dict[str, Any]) -> int:
    """Return how many tensors an optimizer keeps for each parameter."""
    model = nn.Linear(3, 2, bias=False)
    made = build(OPTIMIZERS, optimizer, model=model)
    model.weight.grad = torch.zeros_like(model.weight)
    made.step()
    values = made.state[model.weight].values()
    return sum(isinstance(value, Tensor) and value.numel() == 6 for value in values)


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
    before, steps = _memory(worker.device), lengths.steps
    workers = worker.size // settings.replicas
    stages = workers * settings.stages_per_worker
    grid = make_grid(workers, settings.replicas, timeout_s=settings.timeout_s)
    objective.to(worker.device)

    def loss(outputs: Value, targets: Any, number: int) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = objective(_IDENTITY, objective.sees(outputs, targets), number)
        return terms

    pipeline = Pipeline(
        layers_of(network, seed),
        costs.balance(settings.balance, stages, checkpoint=settings.checkpoint),
        grid=grid,
        loss=loss,
        micro_batches=settings.micro_batches,
        schedule=settings.schedule,
        checkpoint=settings.checkpoint,
        skip=settings.skip,
        seed=seed,
        device=worker.device,
        autocast=_AUTOCAST[recipe.precision],
        deferred_batch_norm=settings.deferred_batch_norm,
    )
    feed = Feed(grid, workers - 1, worker.device)
    batches = source.open(worker.device) if grid.worker == 0 else None
    stepper = build(OPTIMIZERS, optimizer, model=pipeline.module)
    scheduler = scheduled(
        stepper, build(SCHEDULES, schedule), steps=steps, warmup_steps=lengths.warmup
    )
    scaler = LossScaler() if recipe.precision == "fp16" else None
    traces: list[list[list[Span]]] = []

    def fed(own: Iterator[tuple[Value, Value, int]] | None) -> Iterator[Fed]:
        while (batch := feed(None if own is None else next(own, None))) is not None:
            yield batch

    def step(batch: Fed, number: int) -> dict[str, Tensor]:
        pipeline.loss_scale = 1.0 if scaler is None else scaler.scale
        traced = steps - number <= _TRACED_STEPS + 1  # one more, since the last may be smaller
        terms = pipeline.step(batch, number, align=traced)
        if traced:
            traces.append(pipeline.spans())
        return terms

    def evaluate(split: str) -> Evaluated:
        sums: dict[str, Tensor] = {}
        own = batches.testing(grid.replica, grid.replicas) if batches else None
        for batch in fed(own):
            outputs = pipeline.predict(batch)
            if outputs is not None:
                with precision(worker.device.type, _AUTOCAST[recipe.precision]):
                    terms = loss(outputs, batch.targets, steps)
                for name, term in terms.items():
                    part = term.detach().double() * (batch.rows / batch.total)
                    sums[name] = sums.get(name, 0.0) + part
        shared = pipeline.shared(sums)
        found = {f"{split}/{name}": float(value) for name, value in shared.items()}
        if split == "test":
            found |= _figures(traces, pipeline, settings, worker, before, uri)
        return Evaluated(found)

    parts: dict[str, Any] = {
        "model": pipeline.module,
        "optimizer": NamedOptimizer(stepper, pipeline.module.named_parameters()),
        "scheduler": scheduler,
    }
    return Training(
        step=step,
        update=_updater(pipeline, grid, stepper, scheduler, scaler, recipe.clip_norm),
        batches=lambda start: fed(
            batches.training(start, grid.replica, grid.replicas) if batches else None
        ),
        steps=steps,
        parts=parts if scaler is None else parts | {"scaler": scaler},
        evaluate=evaluate,
        shard=Shard(saved=grid.replica == 0),
        save_every=lengths.save_every,
        log_every=lengths.log_every,
        evaluate_every=lengths.evaluate_every,
    )


_IDENTITY = nn.Identity()


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
    peaks: list[Any] = [None] * worker.size
    dist.all_gather_object(peaks, max(0, _memory(worker.device, peak=True) - before))
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
