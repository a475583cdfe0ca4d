"""Train a sequential network in stages that live in workers, on one machine or on many.

The layers are timed and cut into stages of equal load; each worker keeps its own layers, and
micro-batches pass from one to the next. Gradients, batch norm statistics and checkpoints are those
of the whole network on one device. With no option it trains a small residual network on the images
that come with raykb, in two stages, in a minute or so on two cores.

Papers: Huang et al., "GPipe", NeurIPS 2019, arXiv:1811.06965; Kim et al., "torchgpipe",
arXiv:2004.09910.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(__file__, __doc__)  # --help, before the imports below take their seconds

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raykb.config import Problems, Section, Value, build
from raykb.data.batches import LabelledImages
from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.data.views import VIEWS
from raykb.engine.objective import OBJECTIVES, Objective, Task
from raykb.engine.optim import OPTIMIZERS, SCHEDULES
from raykb.engine.recipe import RENAMED, Recipe
from raykb.gpipe.check import boundary_problems, pipeline_problems
from raykb.gpipe.costs import Costs
from raykb.gpipe.memory import StageMemory
from raykb.gpipe.partition import cut
from raykb.gpipe.probe import Spec
from raykb.gpipe.trace import Span, chrome_trace, efficiency
from raykb.models import SEQUENTIALS
from raykb.report.figures import png
from raykb.report.tables import markdown
from raykb.report.timeline import timeline
from raykb.runtime.connection import cluster_address
from raykb.runtime.job import launch
from raykb.runtime.resources import Phase, WorkerResources, describe, fit, this_host
from raykb.runtime.session import Session
from raykb.runtime.stages import (
    MIB,
    SPANS,
    PipelineSettings,
    Source,
    StageResources,
    layers_of,
    measured,
    stage_training,
    state_tensors,
)
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob

DEFAULT = Path(__file__).parent / "configs" / "gpipe" / "gpipe_fashion_mnist_sample.yaml"
TRAINING = "training"
PREDICTED = ("bubble", "balance", "runtime", "makespan_s")
SCHEMA = {
    "seed": Value(int, 0),
    "data": DATASETS,
    "view": VIEWS,
    "model": Section(SEQUENTIALS, given=("classes", "channels")),
    "optimizer": Section(OPTIMIZERS, given=("model",)),
    "schedule": SCHEDULES,
    "method": Section(OBJECTIVES, given=("task",), default="cross_entropy"),
    "recipe": Section(Recipe, renamed=RENAMED),
    "pipeline": PipelineSettings,
    "resources": StageResources,
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    train: ImageSet
    test: ImageSet
    network: functools.partial[nn.Sequential]
    objective: Objective
    sample: Tensor
    recipe: Recipe
    settings: PipelineSettings
    each: StageResources
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Read the data and build the model without memory.

    Raises:
        ValueError: the pipeline cannot be; all that is wrong with it is named.
    """
    problems = Problems()
    settings, recipe = build(PipelineSettings, config["pipeline"]), build(Recipe, config["recipe"])
    each = build(StageResources, config["resources"])
    with problems.at("data", config["data"]):
        train, test = build(DATASETS, config["data"])
    problems.refuse("this run cannot be")
    sizes = {"classes": len(train.classes), "channels": train.images.shape[1]}
    network = functools.partial(build, SEQUENTIALS, config["model"], **sizes)
    layers, sample = [], None
    rows = -(-recipe.batch_size // settings.replicas // settings.micro_batches)
    with problems.at("view", config["view"]):
        image = build(VIEWS, config["view"]).plain(torch.from_numpy(train.images[:1]))
        sample = torch.zeros((max(1, rows), *image.shape[1:]), device="meta")
    with problems.at("model", config["model"]):
        layers = layers_of(network, config["seed"])
    with problems.at("optimizer", config["optimizer"]):
        build(OPTIMIZERS, config["optimizer"], model=nn.Linear(1, 1))
    with problems.at("method", config["method"]):
        steps = recipe.lengths(len(train)).steps
        task = Task(nn.Identity(), steps, len(train.classes))
        objective = build(OBJECTIVES, config["method"], task=task)
    if layers and sample is not None:
        problems.add(*pipeline_refusals(settings, recipe, layers, sample))
    if problems:  # else the plan says it
        with problems.at():
            check_places(each.workers(settings.workers))
    problems.refuse("this pipeline cannot be")
    phases = [Phase(TRAINING, 1, each.workers(settings.workers))]
    return Ready(train, test, network, objective, sample, recipe, settings, each, phases)


def pipeline_refusals(
    settings: PipelineSettings,
    recipe: Recipe,
    layers: Sequence[tuple[str, nn.Module]],
    sample: Tensor,
) -> list[str]:
    """Return all that is wrong with a pipeline, as far as it can be seen before Ray is there."""
    balance = settings.balance if isinstance(settings.balance, list) else None
    found = pipeline_problems(
        layers,
        stages=settings.stages,
        micro_batches=settings.micro_batches,
        batch_size=recipe.batch_size,
        schedule=settings.schedule,
        stages_per_worker=settings.stages_per_worker,
        balance=balance,
    )
    known = balance is not None and sum(balance) == len(layers) and min(balance) > 0
    anywhere = balance if balance is not None and known else [1] * len(layers)
    cuts = [len(layers)] if settings.alone else anywhere
    return found + boundary_problems(layers, cuts, [Spec.of(sample)], skip=settings.skip)


def check_places(each: WorkerResources) -> None:
    """Raise ValueError if this host, where it is all that there is, has no place for workers."""
    nodes = this_host()
    if cluster_address() is None and not fit(each.workers, each, nodes):
        raise ValueError(
            f"stages: {each.workers} workers of {each.cpus} CPU and {each.gpus:g} GPU, and there "
            f"is {describe(nodes)}"
        )


def gpipe_train(session: Session, ready: Ready) -> None:
    """Run the training; a run that was stopped goes on from its last checkpoint."""
    config = session.config
    session.say(f"{len(ready.train)} training images, {len(ready.test)} test images")
    costs = costs_of(session, ready)
    needs = tell_layout(session, ready, costs)
    images = {
        "train": session.machine.share(ready.train),
        "test": session.machine.share(ready.test),
    }
    view = build(VIEWS, config["view"])
    job = TrainJob(
        TRAINING,
        stage_training,
        {
            "network": ready.network,
            "objective": ready.objective,
            "source": Source(
                LabelledImages,
                images | {"view": view, "recipe": ready.recipe, "seed": config["seed"]},
            ),
            "lengths": ready.recipe.lengths(len(ready.train)),
            "recipe": ready.recipe,
            "settings": ready.settings,
            "costs": costs,
            "optimizer": config["optimizer"],
            "schedule": config["schedule"],
            "seed": config["seed"],
            "uri": session.storage.below(TRAINING).uri,
        },
        config["seed"],
        ready.phases[0].each,
        group=ready.settings.group,
    )
    (result,) = session.train_all(TRAINING, [job])
    tell_result(session, ready, result, needs)


def costs_of(session: Session, ready: Ready) -> Costs:
    """Return what the layers cost; a run that goes on keeps its figures, and with them its cut.

    They are measured again if micro-batches are of another size now, or the device is another.
    """
    of = {"micro_batch": list(ready.sample.shape), "gpu": ready.each.gpus > 0}
    if session.storage.exists("costs.json"):
        record = json.loads(session.storage.read("costs.json"))
        if record.get("of", of) == of:
            return Costs.of_state(record)
    seed, alone = session.config["seed"], ready.each.workers(1)
    size = torch.zeros_like(ready.sample, device="cpu")
    costs: Costs = session.machine.call(
        measured, ready.network, size, seed, alone.cpus, alone.device, resources=alone
    )
    session.write("costs.json", json.dumps(costs.state() | {"of": of}))
    return costs


def tell_layout(session: Session, ready: Ready, costs: Costs) -> list[StageMemory]:
    """Say what each worker will do and need, and return that; the tracker keeps it, too."""
    layout = ready.settings.laid_out(costs)
    balance = layout["balance"]
    needs = costs.memory(state_tensors=state_tensors(session.config["optimizer"]), **layout)
    seconds = zip(*costs.stage_seconds(balance), strict=True)
    rows = []
    for stage, (own, times) in enumerate(zip(cut(costs.sizes, balance), seconds, strict=True)):
        parameters = sum(layer.parameters for layer in own) // 4
        layers = f"{len(own)}: {own[0].name} … {own[-1].name}"
        worker = stage % len(needs)
        rows.append(
            [str(stage), str(worker), layers, f"{parameters:,}"]
            + [f"{1e3 * each:.2f}" for each in times]
            + [f"{needs[worker].total / MIB:.1f}"]
        )
    head = ["stage", "worker", "layers", "parameters", "forward ms", "backward ms", "worker MiB"]
    session.say(markdown(head, rows))
    spans = costs.spans(**layout)
    predicted = efficiency(spans, layout["schedule"], checkpoint=layout["checkpoint"])
    session.say(
        f"predicted: bubble {predicted['bubble']:.2f}, balance {predicted['balance']:.2f}, "
        f"{1e3 * predicted['makespan_s']:.1f} ms a step without messages and update"
    )
    figures = {f"pipeline/predicted/{name}": predicted[name] for name in PREDICTED}
    for rank, need in enumerate(needs):
        figures[f"memory/worker-{rank}/predicted_mib"] = need.total / MIB
    session.parent.log(0, figures)
    return needs


def tell_result(
    session: Session, ready: Ready, result: Result, needs: Sequence[StageMemory]
) -> None:
    """Write and print what the run reached, and the picture of one of its last steps.

    On the CPU, where the peak is that of resident memory, it counts whatever a process needs to
    send, receive and compute; the prediction knows the model alone.
    """
    session.parent.log(result.steps, result.metrics)
    record = {"schema": 1, "metrics": result.metrics, "seconds": result.seconds}
    session.write("results.json", json.dumps(record, indent=1))
    print()
    for name, value in sorted(result.metrics.items()):
        if not name.startswith("memory/"):
            print(f"{name:24} {value:10.4g}")
    for rank, need in enumerate(needs):
        peak = result.metrics.get(f"memory/worker-{rank}/peak_mib", 0.0)
        what = "of its GPU" if ready.each.gpus else "more resident memory"
        print(f"worker {rank}: {need.total / MIB:.1f} MiB predicted, {peak:.1f} MiB {what} at most")
    if result.storage.exists(SPANS):
        rows = json.loads(result.storage.read(SPANS))
        spans = [[Span(*span) for span in row] for row in rows]
        names = ("bubble", "balance", "runtime")
        factors = {name: result.metrics.get(f"pipeline/{name}") for name in names}
        known = {name: value for name, value in factors.items() if value is not None}
        session.write("trace.json", chrome_trace(spans))
        picture = timeline(spans, factors=known, title=ready.settings.schedule)
        session.write("timeline.png", png(picture))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        gpipe_train,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        prepare=prepare,
        may_change=("pipeline", "resources"),  # checkpoints fit any number of stages
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
