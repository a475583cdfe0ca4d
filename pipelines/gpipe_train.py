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

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raykb.assembly import RECIPE, SECTIONS, Pipelined
from raykb.config import Problems, Section, build
from raykb.data.batches import LabelledImages
from raykb.data.views import VIEWS
from raykb.engine.foreign import parsed
from raykb.engine.objective import OBJECTIVES
from raykb.gpipe.costs import Costs
from raykb.gpipe.memory import StageMemory
from raykb.gpipe.schedule import worker_of
from raykb.gpipe.trace import Span, chrome_trace, efficiency
from raykb.later import Later
from raykb.models import SEQUENTIALS
from raykb.runtime.job import launch
from raykb.runtime.resources import Phase
from raykb.runtime.session import Session
from raykb.runtime.stage_training import SPANS, Source, stage_training
from raykb.runtime.stages import (
    MIB,
    PipelineSettings,
    StageResources,
    layers_of,
    measured,
    state_tensors,
)
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "gpipe" / "gpipe_fashion_mnist_sample.yaml"
TRAINING = "training"
PREDICTED = ("bubble", "balance", "runtime", "makespan_s")
SCHEMA = SECTIONS | {
    "model": Section(SEQUENTIALS, given=("classes", "channels")),
    "method": Section(OBJECTIVES, given=("task",), default="cross_entropy"),
    "recipe": RECIPE,
    "pipeline": PipelineSettings,
    "resources": StageResources,
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: Pipelined
    sample: Tensor  # a micro-batch, on the meta device
    settings: PipelineSettings
    each: StageResources
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Read the data and build the model without memory.

    Raises:
        ValueError: the pipeline cannot be; all that is wrong with it is named.
    """
    problems = Problems()
    settings = build(PipelineSettings, config["pipeline"])
    each = build(StageResources, config["resources"])
    data = Pipelined.opened(config, problems)
    layers, sample = [], None
    with problems.at("view", config["view"]):
        sample = data.micro_batch(settings.replicas * settings.micro_batches)
    with problems.at("model", config["model"]):
        layers = layers_of(data.network, config["seed"])
    data.check(problems)
    if layers and sample is not None:
        problems.add(*settings.problems(layers, sample, data.recipe.batch_size))
    if problems:  # else the plan says it
        problems.add(*each.problems(settings.workers))
    problems.refuse("this pipeline cannot be")
    phases = [Phase(TRAINING, 1, each.workers(settings.workers))]
    return Ready(data, sample, settings, each, phases)


def gpipe_train(session: Session, ready: Ready) -> None:
    """Run the training; a run that was stopped goes on from its last checkpoint."""
    config, data = session.config, ready.data
    session.say(f"{len(data.train)} training images, {len(data.test)} test images")
    costs = costs_of(session, ready)
    needs = tell_layout(session, ready, costs)
    source = session.share(train=data.train, test=data.test) | {
        "view": build(VIEWS, config["view"]),
        "recipe": data.recipe,
        "seed": config["seed"],
    }
    job = TrainJob(
        TRAINING,
        stage_training,
        {
            "network": data.network,
            "objective": data.objective(),
            "source": Source(LabelledImages, source),
            "lengths": data.recipe.lengths(len(data.train)),
            "recipe": data.recipe,
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
        record = parsed(session.storage.read("costs.json"))
        if record.get("of", of) == of:
            return Costs.of_state(record)
    seed, alone = session.config["seed"], ready.each.workers(1)
    size = torch.zeros_like(ready.sample, device="cpu")
    costs: Costs = session.machine.call(
        measured, ready.data.network, size, seed, alone.cpus, alone.device, resources=alone
    )
    session.write("costs.json", json.dumps(costs.state() | {"of": of}))
    return costs


def tell_layout(session: Session, ready: Ready, costs: Costs) -> list[StageMemory]:
    """Say what each worker will do and need, and return that; the tracker keeps it, too."""
    layout = ready.settings.laid_out(costs)
    needs = costs.memory(state_tensors=state_tensors(session.config["optimizer"]), **layout)
    needed = [need.total / MIB for need in needs]
    told, schedule = costs.stages(layout["balance"]), layout["schedule"]
    holders = [worker_of(stage, len(needs), schedule) for stage in range(len(told))]
    session.say(report.stages(told, holders, needed))
    spans = costs.spans(**layout)
    predicted = efficiency(spans, schedule, checkpoint=layout["checkpoint"])
    session.say(
        f"predicted: bubble {predicted['bubble']:.2f}, balance {predicted['balance']:.2f}, "
        f"{1e3 * predicted['makespan_s']:.1f} ms a step without messages and update"
    )
    figures = {f"pipeline/predicted/{name}": predicted[name] for name in PREDICTED}
    figures |= {f"memory/worker-{rank}/predicted_mib": mib for rank, mib in enumerate(needed)}
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
    needed = [need.total / MIB for need in needs]
    print(f"\n{report.reached(result.metrics, needed, gpus=ready.each.gpus > 0)}")
    if result.storage.exists(SPANS):
        rows = parsed(result.storage.read(SPANS))
        spans = [[Span(*span) for span in row] for row in rows]
        told = {name: f"pipeline/{name}" for name in ("bubble", "balance", "runtime")}
        factors = {name: result.metrics[key] for name, key in told.items() if key in result.metrics}
        session.write("trace.json", chrome_trace(spans))
        picture = report.timeline(spans, factors=factors, title=ready.settings.schedule)
        session.write("timeline.png", report.png(picture))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        gpipe_train,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="gpipe",
        prepare=prepare,
        may_change=("pipeline", "resources"),  # checkpoints fit any number of stages
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
