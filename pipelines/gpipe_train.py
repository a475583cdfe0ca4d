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

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raykb import report
from raykb.config import Section, build
from raykb.data.batches import LabelledImages
from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.data.views import VIEWS
from raykb.engine.objective import CrossEntropy
from raykb.engine.optim import OPTIMIZERS, SCHEDULES
from raykb.engine.recipe import Recipe
from raykb.gpipe.check import boundary_problems, pipeline_problems
from raykb.gpipe.costs import Costs
from raykb.gpipe.memory import StageMemory
from raykb.gpipe.partition import cut
from raykb.gpipe.probe import Spec
from raykb.gpipe.trace import Span, chrome_trace, efficiency
from raykb.models import SEQUENTIALS
from raykb.runtime.connection import cluster_address
from raykb.runtime.job import launch
from raykb.runtime.resources import Phase, describe, fit, this_host
from raykb.runtime.session import Refused, Session
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
from raykb.runtime.train import Result, share
from raykb.runtime.work import TrainJob

DEFAULT = Path(__file__).parent / "configs" / "gpipe" / "gpipe_fashion_mnist_sample.yaml"
TRAINING = "training"
PREDICTED = ("bubble", "balance", "runtime", "makespan_s")
SCHEMA = {
    "seed": int,
    "data": DATASETS,
    "view": VIEWS,
    "model": Section(SEQUENTIALS, given=("classes", "channels")),
    "optimizer": Section(OPTIMIZERS, given=("model",)),
    "schedule": SCHEDULES,
    "recipe": Section(Recipe, judged=False),  # but with the pipeline
    "pipeline": PipelineSettings,
    "resources": StageResources,
}


@dataclass
class Prepared:
    """What a run is made of before anything starts."""

    train: ImageSet
    test: ImageSet
    network: functools.partial[nn.Sequential]
    layers: list[tuple[str, nn.Module]]
    sample: Tensor
    recipe: Recipe
    settings: PipelineSettings
    on_gpu: bool


def prepare(config: dict[str, Any]) -> Prepared:
    """Read the data and build the model without memory; read but once for one configuration.

    Raises:
        ValueError: the pipeline cannot be; all that is wrong with it is named.
    """
    return _prepare(json.dumps(config, sort_keys=True))


@functools.cache
def _prepare(text: str) -> Prepared:
    config = json.loads(text)
    settings = build(PipelineSettings, config["pipeline"])
    try:
        train, test = build(DATASETS, config["data"])
    except (ValueError, OSError) as error:
        raise Refused(f"data: {error}") from error
    sizes = {"classes": len(train.classes), "channels": train.images.shape[1]}
    network = functools.partial(build, SEQUENTIALS, config["model"], **sizes)
    layers = layers_of(network, config["seed"])
    image = build(VIEWS, config["view"]).plain(torch.from_numpy(train.images[:1]))
    rows = -(-config["recipe"]["batch_size"] // settings.replicas // settings.micro_batches)
    sample = torch.zeros((max(1, rows), *image.shape[1:]), device="meta")
    if problems := _problems(config, layers, sample):
        raise ValueError("this pipeline cannot be:\n  - " + "\n  - ".join(problems))
    recipe = build(Recipe, config["recipe"])
    on_gpu = build(StageResources, config["resources"]).gpus > 0
    return Prepared(train, test, network, layers, sample, recipe, settings, on_gpu)


def _problems(
    config: dict[str, Any], layers: Sequence[tuple[str, nn.Module]], sample: Tensor
) -> list[str]:
    """Return all that is wrong with a pipeline, as far as it can be seen before Ray is there."""
    settings = build(PipelineSettings, config["pipeline"])
    balance = settings.balance if isinstance(settings.balance, list) else None
    found = pipeline_problems(
        layers,
        stages=settings.stages,
        micro_batches=settings.micro_batches,
        batch_size=config["recipe"]["batch_size"],
        schedule=settings.schedule,
        stages_per_worker=settings.stages_per_worker,
        balance=balance,
    )
    known = balance is not None and sum(balance) == len(layers) and min(balance) > 0
    anywhere = balance if balance is not None and known else [1] * len(layers)
    cuts = [len(layers)] if settings.alone else anywhere
    found += boundary_problems(layers, cuts, [Spec.of(sample)], skip=settings.skip)
    found += _refusals(lambda: build(Recipe, config["recipe"]))
    optimizer = _refusals(lambda: build(OPTIMIZERS, config["optimizer"], model=nn.Linear(1, 1)))
    found += [f"optimizer: {problem}" for problem in optimizer]
    if found:  # else the plan says it
        found += _refusals(lambda: _check_places(config, settings.workers))
    return list(dict.fromkeys(found))


def _refusals(make: Callable[[], Any]) -> list[str]:
    """Return why something cannot be made."""
    try:
        make()
    except ValueError as error:
        return str(error).split("; ")
    return []


def _check_places(config: dict[str, Any], workers: int) -> None:
    """Raise ValueError if this host, where it is all that there is, has no place for them."""
    each, nodes = build(StageResources, config["resources"]).workers(workers), this_host()
    if cluster_address() is None and not fit(workers, each, nodes):
        raise ValueError(
            f"stages: {workers} workers of {each.cpus} CPU and {each.gpus:g} GPU, and there is "
            f"{describe(nodes)}"
        )


def plan(config: dict[str, Any]) -> list[Phase]:
    """Return the one phase of a run, which takes all workers of the pipeline."""
    workers = prepare(config).settings.workers
    return [Phase(TRAINING, 1, build(StageResources, config["resources"]).workers(workers))]


def gpipe_train(session: Session) -> None:
    """Run the training; a run that was stopped goes on from its last checkpoint."""
    config, ready = session.config, prepare(session.config)
    session.say(f"{len(ready.train)} training images, {len(ready.test)} test images")
    each = build(StageResources, config["resources"]).workers(ready.settings.workers)
    costs = costs_of(session, ready)
    needs = tell_layout(session, ready, costs)
    per_epoch = ready.recipe.steps_per_epoch(len(ready.train))
    images = {"train": share(ready.train), "test": share(ready.test)}
    view = build(VIEWS, config["view"])
    job = TrainJob(
        TRAINING,
        stage_training,
        {
            "network": ready.network,
            "objective": CrossEntropy(label_smoothing=ready.recipe.label_smoothing),
            "source": Source(
                LabelledImages,
                images | {"view": view, "epochs": ready.recipe, "seed": config["seed"]},
            ),
            "steps": ready.recipe.epochs * per_epoch,
            "warmup_steps": round(ready.recipe.warmup_epochs * per_epoch),
            "recipe": ready.recipe,
            "settings": ready.settings,
            "costs": costs,
            "optimizer": config["optimizer"],
            "schedule": config["schedule"],
            "seed": config["seed"],
            "uri": session.storage.below(TRAINING).uri,
        },
        config["seed"],
        save_every=ready.recipe.save_every_epochs * per_epoch,
        log_every=max(1, per_epoch // 4),
        group=ready.settings.group,
    )
    (result,) = session.train(TRAINING, [job], each)
    tell_result(session, ready, result, needs)


def costs_of(session: Session, ready: Prepared) -> Costs:
    """Return what the layers cost; a run that goes on keeps its figures, and with them its cut.

    They are measured again if micro-batches are of another size now, or the device is another.
    """
    of = {"micro_batch": list(ready.sample.shape), "gpu": ready.on_gpu}
    if session.storage.exists("costs.json"):
        record = json.loads(session.storage.read("costs.json"))
        if record.get("of", of) == of:
            return Costs.of_state(record)
    each = build(StageResources, session.config["resources"]).workers(1)
    costs = measured(ready.network, ready.sample, seed=session.config["seed"], resources=each)
    session.write("costs.json", json.dumps(costs.state() | {"of": of}))
    return costs


def tell_layout(session: Session, ready: Prepared, costs: Costs) -> list[StageMemory]:
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
    session.say(report.markdown(head, rows))
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
    session: Session, ready: Prepared, result: Result, needs: Sequence[StageMemory]
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
        what = "of its GPU" if ready.on_gpu else "more resident memory"
        print(f"worker {rank}: {need.total / MIB:.1f} MiB predicted, {peak:.1f} MiB {what} at most")
    if result.storage.exists(SPANS):
        rows = json.loads(result.storage.read(SPANS))
        spans = [[Span(*span) for span in row] for row in rows]
        names = ("bubble", "balance", "runtime")
        factors = {name: result.metrics.get(f"pipeline/{name}") for name in names}
        known = {name: value for name, value in factors.items() if value is not None}
        session.write("trace.json", chrome_trace(spans))
        picture = report.timeline(spans, factors=known, title=ready.settings.schedule)
        session.write("timeline.png", report.png(picture))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        gpipe_train,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        plan=plan,
        may_change=("pipeline", "resources"),  # checkpoints fit any number of stages
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
