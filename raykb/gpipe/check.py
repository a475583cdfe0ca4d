"""What is wrong with a pipeline, all at once, before anything starts."""

from collections.abc import Sequence

from torch import nn

from raykb.gpipe import schedule as schedules
from raykb.gpipe.links import wire_spec
from raykb.gpipe.partition import (
    Partition,
    balance_problems,
    cut,
    name_problems,
    shared_layers,
    shared_parameters,
)
from raykb.gpipe.probe import Spec, probe
from raykb.parts.skip import skip_problems


def pipeline_problems(
    layers: Sequence[tuple[str, nn.Module]],
    *,
    stages: int,
    micro_batches: int,
    batch_size: int,
    schedule: str,
    stages_per_worker: int = 1,
    balance: Sequence[int] | None = None,
    checkpoint: str = "never",
) -> list[str]:
    """Return the problems of a pipeline that can be seen without running it; empty if none is.

    Args:
        layers: (name, layer) of the whole model.
        stages: of the pipeline.
        micro_batches: pieces that a batch is cut into.
        batch_size: samples of a step.
        schedule: one of :data:`raykb.gpipe.schedule.SCHEDULES`.
        stages_per_worker: stages that each worker holds.
        balance: layers of each stage; None while it is undecided.
        checkpoint: ``always``, ``except_last`` or ``never``.
    """
    found = schedules.problems(schedule, stages, micro_batches, stages_per_worker)
    if schedule in schedules.SPLIT and checkpoint != "never":
        found.append(
            f"checkpoint: {checkpoint!r}, must be never with the schedule {schedule}: what is "
            "recomputed is back-propagated as one; the schedule 1f1b needs less memory"
        )
    if batch_size < 1:
        found.append(f"batch_size: {batch_size}, must be at least 1")
    if stages > len(layers):
        found.append(
            f"stages: {stages}, must not be above the {len(layers)} layers of the model; a layer "
            "that is an nn.Sequential counts with its parts"
        )
    found += [*name_problems(layers), *skip_problems(layers)]
    if balance is not None:
        wrong = balance_problems(balance, len(layers))
        found += (
            [*wrong, *shared_layers(layers)] if wrong else shared_parameters(cut(layers, balance))
        )
        if len(balance) != stages:
            found.append(
                f"balance: {list(balance)} has {len(balance)} stages, must have {stages}, as "
                "`stages` says"
            )
    elif stages > 1:
        found += shared_layers(layers)
    return found


def boundary_problems(
    layers: Sequence[tuple[str, nn.Module]],
    balance: Sequence[int],
    sample: Sequence[Spec],
    *,
    skip: str = "portal",
) -> list[str]:
    """Return what the model on the meta device does wrong with a micro-batch, cut by ``balance``.

    Nothing where skips do not match: no layer could run.

    Args:
        layers: (name, layer) of the whole model.
        balance: layers of each stage.
        sample: shapes and types of one micro-batch; one of them is given as a bare tensor.
        skip: how skips cross stages, by a ``portal`` or as a ``tuple`` through those between.
    """
    if skip_problems(layers):
        return []
    try:
        found = probe([Partition(p) for p in cut(layers, balance)], sample, bare=len(sample) == 1)
        crossing = [spec for value in found.values[1:-1] for spec in value]
        if skip == "tuple":
            crossing += [spec for spec in found.skips.values() if spec is not None]
        for spec in crossing:
            wire_spec(spec)
    except (TypeError, ValueError) as error:
        return [str(error)]
    return []
