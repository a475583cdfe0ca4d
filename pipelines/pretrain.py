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

import numpy as np

from raykb.assembly import (
    RECIPE,
    SECTIONS,
    Asked,
    AsTheyAre,
    SelfSupervised,
    State,
    check_offers,
    compared,
    rehearse_all,
    self_supervised_data,
    tasks_of,
    training,
    untrained,
)
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, build
from raykb.data.crops import CROPS
from raykb.data.images import ImageSet
from raykb.data.normalisation import form
from raykb.data.source import View
from raykb.data.unlabelled import UnlabelledImages
from raykb.engine.recipe import Recipe
from raykb.evaluate.localisation import Localisation
from raykb.evaluate.protocols import PROTOCOLS
from raykb.later import Later
from raykb.runtime.array_files import ArrayFiles
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, DataResources, Phase, WorkerResources
from raykb.runtime.session import Session
from raykb.runtime.streamed import data_workers, stream_of, tell_broken
from raykb.runtime.streams import STREAM
from raykb.runtime.train import Result, finished
from raykb.runtime.work import TrainJob
from raykb.selfsup import METHODS

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "selfsup" / "fashion_mnist_sample.yaml"
TRAINING = "trainings"
RANDOM = "random"  # the label of initial weights
UNLABELLED, FEATURES = "stream.json", "features"
SPREAD = "test/spread"  # of features, whatever protocols are asked
COLLAPSED = 0.05  # spread below which they say the same of all images
SCHEMA = SECTIONS | {
    "crops": Section(CROPS, default="simclr"),
    "unlabelled": Section(UnlabelledImages, given=("ratio",), derived=form),
    "stream": STREAM,
    "method": Section(METHODS, given=("task",)),
    "recipe": RECIPE,
    "as_they_are": Section(AsTheyAre, rows={"models": "model", "views": "view"}),
    "evaluate": Asked,
    **PROTOCOLS,
    "comparison": compared(),
    "resources.training": WORKERS,
    "resources.data": DataResources,
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: SelfSupervised
    comparison: Comparison  # with what is judged as it is
    views: dict[str, View]  # of what is trained
    weights: dict[str, State | None]  # of what is not; None for the initial ones
    absent: dict[str, str]  # what cannot be downloaded, and why
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the data, and build every training without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems = Problems()
    comparison = build(Comparison, config["comparison"])
    data = SelfSupervised.opened(config, problems)
    objectives = rehearse_all(config, METHODS, data.stand_in, data.shape, problems)
    views = {}
    for label, entry in comparison.entries(config).items():
        if (objective := objectives[label]) is not None:
            with problems.at("crops", config["crops"]):
                views[label] = data.view(objective, entry)
    problems.refuse()
    as_they_are = build(AsTheyAre, config["as_they_are"])
    added = initial(comparison, config) | as_they_are.sections(config)
    comparison = dataclasses.replace(comparison, added=added)
    with problems.at("comparison"):
        for label, entry in comparison.entries(config).items():
            check_offers(entry, data.stand_in, problems)
            if tasks_of(entry) != tasks_of(config):
                problems.add(
                    f"comparison.rivals.{label}: would be told by other figures than the run's own "
                    "section; ask all for the same ones, at the end and of the same shares"
                )
    weights, absent = as_they_are.read(config, data.stand_in, problems)
    problems.refuse()
    each = build(WorkerResources, config["resources"]["training"])
    beside = data_workers(config) if data.examples is not None else None
    count = (len(comparison.entries(config)) - len(absent)) * comparison.seeds
    phases = [Phase(TRAINING, count, each, beside)]
    return Ready(data, comparison, views, dict.fromkeys(added) | weights, absent, phases)


def initial(comparison: Comparison, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the labels of initial weights: where networks are compared, of each."""
    if comparison.over != "model":
        return {RANDOM: {}}
    entries = comparison.entries(config)
    return {f"{RANDOM}_{label}": {"model": entry["model"]} for label, entry in entries.items()}


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
    store = ArrayFiles(session.storage.below(FEATURES).uri)
    given = session.share(train=train, test=test) | {"store": store}
    weights = session.share(**ready.weights)
    for label, why in ready.absent.items():
        session.say(f"{label}: left out: {why}")
    jobs = [
        (entry, job(session, ready, entry, given, weights.get(entry.label)))
        for entry in ready.comparison.trainings(session.config)
        if entry.label not in ready.absent or finished(session.storage, entry.name)
    ]
    results = session.compare(TRAINING, ready.comparison, jobs)
    tell_broken(session, [result for _, result in results])
    tell_results(session, ready, results, train, test)


def job(
    session: Session, ready: Ready, entry: Entry, given: dict[str, Any], weights: Any
) -> TrainJob:
    """Return the training of an entry; its seed decides all but the section that is compared."""
    config, trained = entry.config, entry.label in ready.views
    arguments = given | {"config": config, "seed": entry.seed, "samples": ready.data.count}
    if trained:
        view = ready.views[entry.label]
        arguments |= {
            "methods": METHODS,
            "data": self_supervised_data,
            "view": view,
            "unlabelled": stream_of(session, TRAINING, ready.data, entry, view),
        }
    else:
        arguments |= {"view": None, "unlabelled": None, "weights": weights}
    make, each = training if trained else untrained, ready.phases[0].each
    return TrainJob(entry.name, make, arguments, entry.seed, each, {"trained": trained})


def tell_results(
    session: Session,
    ready: Ready,
    results: Sequence[tuple[Entry, Result]],
    train: ImageSet,
    test: ImageSet,
) -> None:
    """Write and print what the features of each method are worth, and what lies next to what."""
    told, tasks = session.told(TRAINING, results), tasks_of(session.config)
    entries = ready.comparison.entries(session.config)
    metrics = [name for own in tasks.values() for name in own] or [SPREAD]  # all tell the latter
    for each in told:
        if each.metrics[SPREAD] < COLLAPSED:
            session.say(
                f"{each.label}/seed-{each.seed} has collapsed: its features say nearly the same of "
                "all images; see train/feature_std over the steps"
            )
        if not each.seed:
            for name, figure in pictures(entries[each.label], each, train, test).items():
                session.write(f"{name}_{each.label}.png", report.png(figure))
    session.write("probe.png", report.png(report.probe_curves(told, metrics[0])))
    rows = [{"label": each.label, "seed": each.seed} | each.metrics for each in told]
    session.tell(ready.comparison, rows, metrics)
    if len(metrics) > 1 and rows:
        session.tell_standings(ready.comparison, rows, tasks)


def pictures(config: dict[str, Any], told: Any, train: ImageSet, test: ImageSet) -> dict[str, Any]:
    """Return by name the pictures of what protocols say of some test images."""
    label, figures = told.label.replace("_", " "), {}
    if found := told.details.get("knn"):
        figures["neighbours"] = report.neighbours(
            found,
            (train.images, train.labels),
            (test.images, test.labels),
            test.classes,
            title=f"{label}: test images, and their nearest",
        )
    if found := told.details.get("localisation"):
        protocol, rows = build(Localisation, config["localisation"]), np.arange(len(found["boxes"]))
        scenes = protocol.scenes(test, found["seed"], "test").read(rows).arrays
        boxes = scenes["images"].shape[3] * np.array(found["boxes"])
        figures["localisation"] = report.scenes(
            **scenes,
            classes=test.classes,
            title=f"{label}: scenes of test images, and what is found",
            found=(boxes, found["labels"]),
        )
    return figures


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
