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

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raykb.assembly import Data, rehearse_all, semi_supervised_data, training
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Renamed, Section, Value, build
from raykb.data.datasets import DATASETS, open_records
from raykb.data.image_views import WeakStrongView
from raykb.data.images import ImageSet
from raykb.data.labels import Labels, from_json, to_json, true_labels
from raykb.data.loading import load
from raykb.data.options import Options
from raykb.data.records import Records
from raykb.data.sharded_images import ShardedImages
from raykb.data.strong import PAIRS
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import VIEWS
from raykb.engine.loop import Feed
from raykb.engine.objective import Objective
from raykb.engine.optim import OPTIMIZERS, SCHEDULES
from raykb.engine.recipe import RENAMED, Recipe
from raykb.engine.seeding import stream_seed
from raykb.models import MODELS
from raykb.report.pseudo_labels import Told, told_of
from raykb.runtime.job import launch
from raykb.runtime.resources import RENAMED as RENAMED_RESOURCES
from raykb.runtime.resources import DataResources, Phase, WorkerResources
from raykb.runtime.session import Refused, Session
from raykb.runtime.streams import TRANSPORTS, BrokenImages, RayData
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob
from raykb.semi import METHODS

DEFAULT = Path(__file__).parent / "configs" / "semi" / "fashion_mnist_sample.yaml"
TRAINING = "trainings"
LABELS, TASK, STREAM, BROKEN = "labels.json", "task.json", "stream.json", "broken_images.txt"
METRICS = ("test/top1", "pseudo_labels/correct")
SAMPLE = "fashion_mnist_sample"  # the data set whose images a stream without paths has
LARGE_START = 0.05  # share of the initial weights in the average that the user is told of
SCHEMA = {
    "seed": Value(int, 0),
    "data": DATASETS,
    "labels": Labels,
    "unlabelled": UnlabelledImages,
    "view": VIEWS,
    "pair": Section(PAIRS, given=("strong_views",), default="fixmatch"),
    "stream": Section(
        TRANSPORTS,
        given=("source", "tell", "trainings"),
        default="ray",
        renamed={
            "views": "unlabelled.views_by",
            **{key: f"unlabelled.{key}" for key in ("paths", "on_bad_image", "mix_shards")},
            **{key: f"unlabelled.{key}" for key in ("image_size", "channels")},
        },
    ),
    "model": Section(MODELS, given=("classes", "channels")),
    "optimizer": Section(OPTIMIZERS, given=("model",)),
    "schedule": SCHEDULES,
    "method": Section(METHODS, given=("task",)),
    "recipe": Section(Recipe, renamed=RENAMED),
    "comparison": Section(Comparison, rows={"rivals": "over"}),
    "resources.training": Section(WorkerResources, renamed=RENAMED_RESOURCES),
    "resources.data": DataResources,
    "views": Renamed("pair"),
}


@dataclass
class Ready:
    """What a run is made of before anything starts; no image is decoded yet, but for one."""

    train: Records
    test: Records
    options: Options
    unlabelled: UnlabelledImages
    examples: ShardedImages
    recipe: Recipe
    comparison: Comparison
    drawn: list[Records]  # of each seed
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
    recipe, comparison = build(Recipe, config["recipe"]), build(Comparison, config["comparison"])
    unlabelled = build(UnlabelledImages, config["unlabelled"])
    if unlabelled.paths is None and (name := config["data"]["name"]) != SAMPLE:
        problems.add(
            "unlabelled.paths: names no shards; must name those of unlabelled images, unless "
            f"data.name is {SAMPLE} (it is {name}); pipelines/prepare_data.py makes them of any "
            "data set"
        )
    seeds = comparison.seeds_of(config)
    with problems.at("data", config["data"]):
        train, test, options = open_records(**config["data"])
    with problems.at("unlabelled", config["unlabelled"]):
        examples = unlabelled.examples(seed=0)
    problems.refuse("this run cannot be")
    drawn: list[Records] = []
    with problems.at("labels", config["labels"]):
        drawn = [build(Labels, config["labels"]).draw(train, seed) for seed in seeds]
    with problems.at("stream", config["stream"]):
        feed_of(config, unlabelled, examples, recipe, seed=0)
    data = Data(
        feed=None,
        samples=config["labels"]["count"],
        classes=len(train.classes),
        channels=examples.shape[0],
        ids=torch.arange(1),
    )
    objectives = rehearse_all(
        comparison, config, METHODS, data, examples.shape, problems, workers=each.workers
    )
    problems.refuse("this run cannot be")
    if config["stream"].get("workers") == 0 or config["stream"]["name"] == "in_place":
        beside = None  # the stream is the trainings' own work
    phases = [Phase(TRAINING, len(comparison.trainings(config)), each, beside)]
    return Ready(
        train, test, options, unlabelled, examples, recipe, comparison, drawn, objectives, phases
    )


def feed_of(
    config: dict[str, Any],
    unlabelled: UnlabelledImages,
    examples: ShardedImages,
    recipe: Recipe,
    seed: int,
    *,
    strong_views: int = 1,
    **given: Any,
) -> Feed:
    """Return the stream of unlabelled images of a training with this seed."""
    own = stream_seed(seed, "unlabelled")
    pair = build(PAIRS, config["pair"], strong_views=strong_views)
    view = WeakStrongView(pair, build(VIEWS, config["view"]))
    source = unlabelled.source(examples.seeded(own), view, recipe.batch_size, own)
    feed: Feed = build(TRANSPORTS, config["stream"], source=source, **given)
    return feed


def semi_train(session: Session, ready: Ready) -> None:
    """Run all trainings; a run that was stopped goes on from the last checkpoint of each."""
    check_stream(session, ready)
    session.warm(TRAINING, training, ready.phases[0].each)
    labelled, test = read_images(session, ready)
    steps, batch = ready.recipe.lengths(len(labelled[0])).steps, ready.recipe.batch_size
    session.say(
        f"{len(labelled[0])} labelled, {len(ready.examples):,} unlabelled, {len(test)} test "
        f"images of {len(test.classes)} classes; {steps} steps of "
        f"{batch} + {ready.unlabelled.ratio * batch} images"
    )
    if (start := ready.recipe.share_of_start(len(labelled[0]))) > LARGE_START:
        session.say(
            f"recipe.ema_decay: after {steps} steps {start:.0%} of the average are still the "
            "initial weights; lower it, or train longer"
        )
    images = {
        "test": session.machine.share(test),
        "truths": session.machine.share(known_labels(session, ready)),
        "ids": session.machine.share(ready.examples.ids),
    }
    entries = ready.comparison.trainings(session.config)
    jobs = [
        (entry, job(session, ready, entry, images | {"labelled": labelled[entry.number]}))
        for entry in entries
    ]
    results = session.compare(TRAINING, ready.comparison, jobs)
    tell_broken(session, [result for _, result in results])
    tell_results(session, ready, results)


def job(session: Session, ready: Ready, entry: Entry, images: dict[str, Any]) -> TrainJob:
    """Return the training of an entry; its seed decides all but the section that is compared."""
    objective, stream = ready.objectives[entry.label], None
    if objective is not None and "weak" in objective.sees._fields:
        stream = feed_of(
            entry.config,
            ready.unlabelled,
            ready.examples,
            ready.recipe,
            entry.seed,
            strong_views=getattr(objective, "strong_views", 1),
            tell=BrokenImages(session.storage.below(entry.name).uri),
        )
        resources = build(DataResources, session.config["resources"]["data"])
        stream = beside(stream, session.parallel[TRAINING], resources)
    return TrainJob(
        entry.name,
        training,
        images
        | {
            "config": entry.config,
            "methods": METHODS,
            "data": semi_supervised_data,
            "unlabelled": stream,
            "seed": entry.seed,
        },
        entry.seed,
        ready.phases[0].each,
    )


def beside(stream: Feed, trainings: int, resources: DataResources) -> Feed:
    """Return a stream that takes no more than its share, since so many trainings run at once."""
    if not isinstance(stream, RayData) or trainings == 1:
        return stream
    workers = stream.workers or max(1, resources.cpus)
    return dataclasses.replace(stream, workers=workers, trainings=trainings)


def read_images(session: Session, ready: Ready) -> tuple[list[ImageSet], ImageSet]:
    """Return the labelled images of each seed, and the test images; say of what form they are."""
    drawn = kept_labels(session, ready)
    with session.reading("data"):
        labelled = [load(records, ready.options) for records in drawn]
        test = load(ready.test, ready.options)
    shape, streamed = test.images.shape[1:], ready.examples.shape
    for part, found in (("labelled", labelled[0].images.shape[1:]), ("unlabelled", streamed)):
        if found != shape:
            raise Refused(
                f"{part} images have the shape {found}, test images {shape}; set image_size and "
                "channels in 'data' and in 'unlabelled', to the same"
            )
    session.write(TASK, json.dumps({"schema": 1, "classes": test.classes, "shape": shape}))
    return labelled, test


def kept_labels(session: Session, ready: Ready) -> list[Records]:
    """Return the labelled images of each seed: those that the run began with."""
    with session.reading(LABELS):
        kept = from_json(session.keep(LABELS, to_json(ready.drawn)), ready.train)
    sizes, drawn = [len(split) for split in kept], [len(split) for split in ready.drawn]
    if sizes != drawn:
        raise Refused(
            f"{LABELS}: has splits of {sizes} images, and the run began with {drawn}; put the file "
            "back as it was, or start a new run"
        )
    return kept


def check_stream(session: Session, ready: Ready) -> None:
    """Refuse to go on with other unlabelled images than those that the run began with.

    Raises:
        Refused: there are other ids, or they are cut into other shards.
    """
    now = {"schema": 1, "images": len(ready.examples), "digest": ready.examples.digest}
    if (before := json.loads(session.keep(STREAM, json.dumps(now)))) != now:
        raise Refused(
            f"unlabelled.paths: {now['images']:,} images where the run began with "
            f"{before['images']:,}, or other ids or shards; what a step sees would be otherwise. "
            "Put the files back as they were, or start a new run"
        )


def known_labels(session: Session, ready: Ready) -> dict[int, int] | None:
    """Return the true labels of unlabelled images by id, for figures; None where there are none."""
    options = ready.options
    selected = options.classes is not None or options.num_classes is not None
    try:
        return true_labels(ready.examples.files, ready.train.classes, selected=selected)
    except (ValueError, OSError) as error:
        session.say(f"pseudo-labels cannot be held against true labels: {error}")
        return None


def tell_broken(session: Session, results: Sequence[Result]) -> None:
    """Say which unlabelled images were broken, whichever training and rank met them."""
    configs = (session.recorded, session.config)  # a run may go on with other resources
    workers = max(config["resources"]["training"]["workers"] for config in configs)
    found = [BrokenImages(result.storage.uri).problems(workers) for result in results]
    if problems := sorted(set().union(*found)):
        session.write(BROKEN, "\n".join(problems) + "\n")
        session.say(
            f"{len(problems)} unlabelled images are broken, in whose place others of their shards "
            f"were seen; {BROKEN} names them, as {problems[0]}"
        )


def tell_results(session: Session, ready: Ready, results: Sequence[tuple[Entry, Result]]) -> None:
    """Write and print what the methods are worth, and how their pseudo-labels went."""
    trainings = []
    for entry, result in results:
        history = session.child(result.name, phase=TRAINING).history()
        known = result.metrics | {"steps": result.steps, "seconds": result.seconds}
        trainings.append(
            Told(entry.label, entry.number, known, result.details(), history, result.steps)
        )
    told = told_of(trainings, ready.train.classes)
    for row, (_, result) in zip(told.rows, results, strict=True):
        child = session.child(result.name, phase=TRAINING)
        own = {name: value for name, value in row.items() if name.startswith("pseudo_labels/")}
        child.log(result.steps, own)
        child.text(json.dumps(result.details()["confusion"]), "confusion.json")
    session.tell(ready.comparison, told.rows, METRICS)
    for name, data in told.files.items():
        session.write(name, data)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        semi_train,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        prepare=prepare,
        # of a stream, how its images come, not which
        may_change=("resources", "stream"),
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
