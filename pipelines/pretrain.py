"""Learn a backbone from images without labels, and say what it is worth.

Methods of self-supervised learning are trained from the same initial weights on the same images in
the same order, over several seeds, and beside them stand the initial weights as they are. What
features are worth is measured at the end and on the way, on frozen features: by a linear probe and
by nearest neighbours. With no option it trains SimCLR and BYOL on the images that come with raykb,
in a few minutes on two cores.

  pretrain.py --set 'method={name: byol}' --set comparison.rivals={}
  pretrain.py --set unlabelled.paths=datasets/mine/train

Papers: Chen et al., "SimCLR", ICML 2020, arXiv:2002.05709; Grill et al., "BYOL", NeurIPS 2020,
arXiv:2006.07733; the others in raykb/selfsup.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(__file__, __doc__)  # --help, before the imports below take their seconds

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykb.assembly import (
    RECIPE,
    SECTIONS,
    SelfSupervised,
    compared,
    rehearse_all,
    self_supervised_data,
    training,
    untrained,
)
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, build
from raykb.data.crops import CROPS
from raykb.data.images import ImageSet
from raykb.data.source import View
from raykb.data.unlabelled import UnlabelledImages
from raykb.engine.recipe import Recipe
from raykb.evaluate.knn import KNN
from raykb.evaluate.linear_probe import LinearProbe
from raykb.later import Later
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, DataResources, Phase, WorkerResources
from raykb.runtime.session import Session
from raykb.runtime.streamed import data_workers, stream_of, tell_broken
from raykb.runtime.streams import STREAM
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob
from raykb.selfsup import METHODS

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "selfsup" / "fashion_mnist_sample.yaml"
TRAINING = "trainings"
RANDOM = "random"  # the label of initial weights
UNLABELLED = "stream.json"
METRICS = ("test/linear_probe/top1", "test/knn/top1")
COLLAPSED = 0.05  # spread of features below which they say the same of all images
SCHEMA = SECTIONS | {
    "crops": Section(CROPS, default="simclr"),
    "unlabelled": Section(UnlabelledImages, given=("ratio",)),
    "stream": STREAM,
    "method": Section(METHODS, given=("task",)),
    "recipe": RECIPE,
    "linear_probe": LinearProbe,
    "knn": KNN,
    "comparison": compared(),
    "resources.training": WORKERS,
    "resources.data": DataResources,
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: SelfSupervised
    comparison: Comparison  # with the initial weights
    views: dict[str, View]
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the data, and build every training without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems = Problems()
    each = build(WorkerResources, config["resources"]["training"])
    comparison = build(Comparison, config["comparison"])
    data = SelfSupervised.opened(config, problems)
    shape, given = data.labelled.shape, data.stand_in
    objectives = rehearse_all(
        comparison, config, METHODS, given, shape, problems, workers=each.workers
    )
    views = {}
    for label, entry in comparison.entries(config).items():
        if is_initial(label):
            problems.add(f"comparison: {label!r} is the run's own word; take another label")
        if (objective := objectives[label]) is not None:
            with problems.at("crops", config["crops"]):
                views[label] = data.view(objective, entry)
    problems.refuse()
    beside = data_workers(config, each) if data.examples is not None else None
    comparison = with_initial(comparison, config)
    phases = [Phase(TRAINING, len(comparison.trainings(config)), each, beside)]
    return Ready(data, comparison, views, phases)


def with_initial(comparison: Comparison, config: dict[str, Any]) -> Comparison:
    """Return a comparison with initial weights among the rivals: where models differ, of each."""
    over, entries = comparison.over, comparison.entries(config)
    initial = {RANDOM: config[over]}
    if over == "model":
        initial = {f"{RANDOM}_{label}": entry[over] for label, entry in entries.items()}
    return dataclasses.replace(comparison, rivals=initial | comparison.rivals)


def is_initial(label: str) -> bool:
    """Return whether a label is that of initial weights."""
    return label == RANDOM or label.startswith(f"{RANDOM}_")


def pretrain(session: Session, ready: Ready) -> None:
    """Run all trainings; a run that was stopped goes on from the last checkpoint of each."""
    data = ready.data
    session.unchanged(UNLABELLED, data.record, "unlabelled.paths")
    session.warm(TRAINING, training, ready.phases[0].each)
    with session.reading("data"):
        train, test = data.labelled.read()
    session.tell_data(train=train, test=test)
    recipe = build(Recipe, session.config["recipe"])
    steps, batch = recipe.lengths(data.count).steps, recipe.batch_size
    session.say(f"{data.count:,} images without labels; {steps} steps of {batch}")
    images = {"train": session.machine.share(train), "test": session.machine.share(test)}
    jobs = [
        (entry, job(session, ready, entry, images))
        for entry in ready.comparison.trainings(session.config)
    ]
    results = session.compare(TRAINING, ready.comparison, jobs)
    tell_broken(session, [result for _, result in results])
    tell_results(session, ready, results, train, test)


def job(session: Session, ready: Ready, entry: Entry, images: dict[str, Any]) -> TrainJob:
    """Return the training of an entry; its seed decides all but the section that is compared."""
    config, initial = entry.config, is_initial(entry.label)
    arguments = images | {"config": config, "seed": entry.seed, "samples": ready.data.count}
    if initial:
        arguments |= {"view": None, "unlabelled": None}
    else:
        view = ready.views[entry.label]
        arguments |= {
            "methods": METHODS,
            "data": self_supervised_data,
            "view": view,
            "unlabelled": stream_of(session, TRAINING, ready.data, entry, view),
        }
    make, each = untrained if initial else training, ready.phases[0].each
    return TrainJob(entry.name, make, arguments, entry.seed, each, {"trained": not initial})


def tell_results(
    session: Session,
    ready: Ready,
    results: Sequence[tuple[Entry, Result]],
    train: ImageSet,
    test: ImageSet,
) -> None:
    """Write and print what the features of each method are worth, and what lies next to what."""
    told = session.told(TRAINING, results)
    for each in told:
        if each.metrics["test/spread"] < COLLAPSED:
            session.say(
                f"{each.label}/seed-{each.seed} has collapsed: its features say nearly the same of "
                "all images; see train/feature_std over the steps"
            )
        if not each.seed:
            figure = report.neighbours(
                each.details["knn"],
                (train.images, train.labels),
                (test.images, test.labels),
                test.classes,
                title=f"{each.label.replace('_', ' ')}: test images, and their nearest",
            )
            session.write(f"neighbours_{each.label}.png", report.png(figure))
    session.write("probe.png", report.png(report.probe_curves(told, METRICS[0])))
    rows = [{"label": each.label, "seed": each.seed} | each.metrics for each in told]
    session.tell(ready.comparison, rows, METRICS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        pretrain,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="self-supervised",
        prepare=prepare,
        may_change=("resources", "stream"),  # of a stream, how its images come, not which
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
