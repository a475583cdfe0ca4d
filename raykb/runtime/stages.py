"""Pipelines on Ray: how one is laid out, and what the driver settles before its workers begin.

layers, checked -> costs, measured on a worker -> balance, predictions

What each worker does stands in :mod:`raykb.runtime.stage_training`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raykb.config import build
from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.optim import OPTIMIZERS
from raykb.engine.seeding import seed_everything
from raykb.gpipe.check import boundary_problems, pipeline_problems
from raykb.gpipe.costs import By, Costs, measure
from raykb.gpipe.materialise import uninitialisable
from raykb.gpipe.partition import flatten
from raykb.gpipe.probe import Spec
from raykb.gpipe.schedule import SPLIT, as_run, runnable, worker_of
from raykb.gpipe.splitting import split_problems
from raykb.runtime.connection import cluster_address
from raykb.runtime.resources import Group, WorkerResources, describe, fit, this_host

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """How a model is laid out over workers; a section of the config.

    Args:
        stages: consecutive pieces of the model.
        replicas: equal pipelines, each with its share of every batch.
        micro_batches: pieces that a batch is cut into.
        schedule: ``gpipe`` (last micro-batch back first), ``gpipe_fifo``, ``1f1b``,
            ``interleaved``, or without bubble ``zero_bubble`` and ``zbv``, with ``checkpoint:
            never``.
        stages_per_worker: 1, or more with ``gpipe``, ``interleaved`` and ``zero_bubble``; 2 with
            ``zbv``.
        checkpoint: micro-batches that are recomputed in backward: ``always``, ``except_last`` (all
            but the one that is back-propagated first) or ``never``.
        balance: what is made equal over the stages, ``time``, ``size`` or ``parameters``; or the
            layers of each stage. Over several hosts ``time`` is that of each one's speed.
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
    schedule: Literal["gpipe", "gpipe_fifo", "1f1b", "interleaved", "zero_bubble", "zbv"] = "1f1b"
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
            checkpoint=self.checkpoint,
        )
        known = balance is not None and sum(balance) == len(layers) and min(balance) > 0
        anywhere = balance if balance is not None and known else [1] * len(layers)
        cuts = [len(layers)] if self.alone else anywhere
        found += boundary_problems(layers, cuts, [Spec.of(sample)], skip=self.skip)
        if self.schedule in SPLIT and not self.alone and not found:
            found += split_problems(layers, [Spec.of(sample)])
        return found

    def cut(self, costs: Costs, workers: int, speeds: Sequence[float] | None = None) -> list[int]:
        """Return the layers of each stage, for so many workers of one pipeline.

        Args:
            costs: of the layers.
            workers: of the pipeline.
            speeds: of the workers, where they are unlike; None for equal ones.
        """
        stages = workers * self.stages_per_worker
        each = None
        if speeds is not None:
            each = [speeds[worker_of(stage, workers, self.schedule)] for stage in range(stages)]
        return costs.balance(self.balance, stages, checkpoint=self.checkpoint, speeds=each)

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
