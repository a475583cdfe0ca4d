"""Train a classifier with few labels and a stream of images that have none.

Labelled images are a few; unlabelled ones are read from Parquet shards as the training needs them,
each in a weak and a strong view, made by data workers beside the training. With no option it trains
FixMatch with contrastive regularization on 40 labels of the images that come with raykb, in a few
minutes on two cores. Any method can be trained beside others, over several seeds, from the same
labels, initial weights and order of images (--set comparison.seeds=5).

  semi_train.py --set 'method={name: freematch}' --set labels.count=250
  semi_train.py --config pipelines/configs/semi/comparison_fashion_mnist_sample.yaml

Papers: Sohn et al., "FixMatch", NeurIPS 2020, arXiv:2001.07685; Lee et al., "Contrastive
Regularization for Semi-Supervised Learning", CVPR 2022 workshop, arXiv:2201.06247; the others in
raykb/semi.
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
from pathlib import Path
from typing import Any

from raykb.assembly import (
    RECIPE,
    SECTIONS,
    SemiSupervised,
    rehearse_all,
    semi_supervised_data,
    training,
)
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Renamed, Section, build
from raykb.data.images import ImageSet
from raykb.data.labels import Labels, from_json, to_json
from raykb.data.strong import PAIRS
from raykb.data.unlabelled import UnlabelledImages
from raykb.engine.objective import Objective
from raykb.engine.recipe import Recipe
from raykb.later import Later
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, DataResources, Phase, WorkerResources
from raykb.runtime.session import Session
from raykb.runtime.streams import (
    RENAMED,
    TRANSPORTS,
    BrokenImages,
    broken_images,
    has_workers,
    sharing,
)
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob
from raykb.semi import METHODS

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "semi" / "fashion_mnist_sample.yaml"
TRAINING = "trainings"
LABELS, TASK, STREAM, BROKEN = "labels.json", "task.json", "stream.json", "broken_images.txt"
METRICS = ("test/top1", "pseudo_labels/correct")
LARGE_START = 0.05  # share of the initial weights in the average that the user is told of
SCHEMA = SECTIONS | {
    "labels": Labels,
    "unlabelled": UnlabelledImages,
    "pair": Section(PAIRS, given=("strong_views",), default="fixmatch"),
    "stream": Section(
        TRANSPORTS, given=("source", "tell", "trainings"), default="ray", renamed=RENAMED
    ),
    "method": Section(METHODS, given=("task",)),
    "recipe": RECIPE,
    "comparison": Section(Comparison, rows={"rivals": "over"}),
    "resources.training": WORKERS,
    "resources.data": DataResources,
    "views": Renamed("pair"),
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: SemiSupervised
    comparison: Comparison
    objectives: dict[str, Objective | None]
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Open data and stream, draw the labels, and build every training without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems = Problems()
    each = build(WorkerResources, config["resources"]["training"])
    beside = build(DataResources, config["resources"]["data"]).beside(each)
    comparison = build(Comparison, config["comparison"])
    data = SemiSupervised.opened(config, comparison.seeds_of(config), TRANSPORTS, problems)
    shape, given = data.examples.shape, data.stand_in
    objectives = rehearse_all(
        comparison, config, METHODS, given, shape, problems, workers=each.workers
    )
    problems.refuse("this run cannot be")
    beside = beside if has_workers(config["stream"]) else None
    phases = [Phase(TRAINING, len(comparison.trainings(config)), each, beside)]
    return Ready(data, comparison, objectives, phases)


def semi_train(session: Session, ready: Ready) -> None:
    """Run all trainings; a run that was stopped goes on from the last checkpoint of each."""
    data, comparison = ready.data, ready.comparison
    session.unchanged(STREAM, data.record, "unlabelled.paths")
    session.warm(TRAINING, training, ready.phases[0].each)
    with session.reading(LABELS):  # those that the run began with, whatever would be drawn now
        sizes = [len(drawn) for drawn in data.drawn]
        drawn = from_json(session.keep(LABELS, to_json(data.drawn)), data.train, sizes)
    with session.reading("data"):
        labelled, test = data.read(drawn)
    shape = test.images.shape[1:]
    session.write(TASK, json.dumps({"schema": 1, "classes": test.classes, "shape": shape}))
    tell_data(session, data, labelled[0], test)
    images = {
        "test": session.machine.share(test),
        "truths": session.machine.share(known_labels(session, data)),
        "ids": session.machine.share(data.examples.ids),
    }
    jobs = [
        (entry, job(session, ready, entry, images | {"labelled": labelled[entry.number]}))
        for entry in comparison.trainings(session.config)
    ]
    results = session.compare(TRAINING, comparison, jobs)
    tell_broken(session, [result for _, result in results])
    tell_results(session, ready, results)


def job(session: Session, ready: Ready, entry: Entry, images: dict[str, Any]) -> TrainJob:
    """Return the training of an entry; its seed decides all but the section that is compared."""
    stream = ready.data.stream(
        entry.config,
        ready.objectives[entry.label],
        entry.seed,
        TRANSPORTS,
        tell=BrokenImages(session.storage.below(entry.name).uri),
    )
    cpus = session.config["resources"]["data"]["cpus"]
    arguments = {
        "config": entry.config,
        "methods": METHODS,
        "data": semi_supervised_data,
        "unlabelled": sharing(stream, session.parallel[TRAINING], cpus),
        "seed": entry.seed,
    }
    return TrainJob(entry.name, training, images | arguments, entry.seed, ready.phases[0].each)


def known_labels(session: Session, data: SemiSupervised) -> dict[int, int] | None:
    """Return the true labels of unlabelled images by id, for figures; None where there are none."""
    try:
        return data.truths()
    except (ValueError, OSError) as error:
        session.say(f"pseudo-labels cannot be held against true labels: {error}")
        return None


def tell_data(session: Session, data: SemiSupervised, labelled: ImageSet, test: ImageSet) -> None:
    """Say what is trained and tested on, and if it is too short for its average."""
    recipe = build(Recipe, session.config["recipe"])
    steps, batch = recipe.lengths(len(labelled)).steps, recipe.batch_size
    session.say(
        f"{len(labelled)} labelled, {len(data.examples):,} unlabelled, {len(test)} test images of "
        f"{len(test.classes)} classes; {steps} steps of {batch} + {data.unlabelled.ratio * batch} "
        "images"
    )
    if (start := recipe.share_of_start(len(labelled))) > LARGE_START:
        session.say(
            f"recipe.ema_decay: after {steps} steps {start:.0%} of the average are still the "
            "initial weights; lower it, or train longer"
        )


def tell_broken(session: Session, results: Sequence[Result]) -> None:
    """Say which unlabelled images were broken, whichever training and rank met them."""
    configs = (session.recorded, session.config)  # a run may go on with other resources
    ranks = max(config["resources"]["training"]["workers"] for config in configs)
    found = broken_images([result.storage.uri for result in results], ranks)
    what = "unlabelled images are broken, in whose place others of their shards were seen"
    session.listed(BROKEN, found, what)


def tell_results(session: Session, ready: Ready, results: Sequence[tuple[Entry, Result]]) -> None:
    """Write and print what the methods are worth, and how their pseudo-labels went."""
    found = report.told_of(session.told(TRAINING, results), ready.data.train.classes)
    for row, (_, result) in zip(found.rows, results, strict=True):
        child = session.child(result.name, phase=TRAINING)
        own = {name: value for name, value in row.items() if name.startswith("pseudo_labels/")}
        child.log(result.steps, own)
        child.text(json.dumps(result.details()["confusion"]), "confusion.json")
    session.tell(ready.comparison, found.rows, METRICS)
    for name, content in found.files.items():
        session.write(name, content)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        semi_train,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="semi-supervised",
        prepare=prepare,
        may_change=("resources", "stream"),  # of a stream, how its images come, not which
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
