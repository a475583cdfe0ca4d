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

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from raykb import report
from raykb.config import ConfigError, Section, build, flatten
from raykb.data.datasets import DATASETS, open_records
from raykb.data.images import ImageSet
from raykb.data.labels import Labels, from_json, to_json
from raykb.data.loading import load
from raykb.data.options import Options
from raykb.data.parquet import named_classes, parquet_records
from raykb.data.records import Records
from raykb.data.strong import PAIRS
from raykb.data.unlabelled import Unlabelled
from raykb.data.views import VIEWS
from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.optim import OPTIMIZERS, SCHEDULES
from raykb.engine.seeding import stream_seed
from raykb.metrics.classification import paired_difference
from raykb.models import MODELS
from raykb.runtime.job import launch
from raykb.runtime.resources import Phase, WorkerResources
from raykb.runtime.session import Refused, Session
from raykb.runtime.storage import open_storage
from raykb.runtime.streams import STREAMS, BrokenImages, RayStream
from raykb.runtime.train import Result, share
from raykb.runtime.work import TrainJob
from raykb.semi import METHODS
from raykb.semi.batch import Task
from raykb.semi.recipe import SemiRecipe
from raykb.semi.settings import Comparison, Row
from raykb.semi.training import semi_training

DEFAULT = Path(__file__).parent / "configs" / "semi" / "fashion_mnist_sample.yaml"
TRAINING = "trainings"
LABELS, TASK, CONFUSION = "labels.json", "task.json", "confusion.json"
STREAM, BROKEN = "stream.json", "broken_images.txt"
FIGURES = {  # of pseudo-labels: what the tracker calls them over the steps, and at the end
    "pseudo_label_accuracy": "correct",
    "pseudo_label_precision": "precision",
    "correct_rate": "confident_and_correct",
    "mask_rate": "mask_rate",
    "cluster_size": "cluster_size",
}
# of a stream, what decides how its images come, not which: a resumed run may have it otherwise
HOW = ("name", "workers", "worker_cpus", "prefetch", "block_steps", "store_mib", "timeout_s")
MAY_CHANGE = ("resources", *(f"stream.{key}" for key in HOW))
SAMPLE = "fashion_mnist_sample"  # the data set whose images a stream without paths has
LARGE_START = 0.05  # share of the initial weights in the average that the user is told of
LATE = 0.1  # share of the steps whose mean stands for the end of a training


@dataclass(frozen=True, kw_only=True)
class DataResources:
    """What is kept free for the stream's data workers; a section of the config.

    Args:
        cpus: CPUs beside each worker of a training; 0 lets data workers share the trainings' CPUs.
    """

    cpus: int = 1

    def __post_init__(self) -> None:
        refuse(misfits(self, cpus=at_least(0)))


SCHEMA = {
    "seed": int,
    "data": DATASETS,
    "labels": Labels,
    "view": VIEWS,
    "views": Section(PAIRS, given=("strong_views",)),
    "stream": Section(STREAMS, given=("batch_size", "seed", "view", "tell", "trainings")),
    "model": Section(MODELS, given=("classes", "channels")),
    "optimizer": Section(OPTIMIZERS, given=("model",)),
    "schedule": SCHEDULES,
    "method": Section(METHODS, given=("task",)),
    "recipe": SemiRecipe,
    "comparison": Comparison,
    "resources.training": WorkerResources,
    "resources.data": DataResources,
}


@dataclass
class Prepared:
    """What a run is made of before anything starts; no image is decoded yet, but for one."""

    train: Records
    test: Records
    options: Options
    recipe: SemiRecipe
    methods: dict[str, Row]
    strong_views: dict[str, int]
    seeds: list[int]
    streams: list[Unlabelled]
    drawn: list[Records]


def prepare(config: dict[str, Any]) -> Prepared:
    """Open data and streams, draw the labels, and try all methods on a model without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    return _prepare(json.dumps(config))


@functools.cache
def _prepare(text: str) -> Prepared:
    config = json.loads(text)
    problems: list[str] = []
    recipe = build(SemiRecipe, config["recipe"])
    comparison = build(Comparison, config["comparison"])
    methods: dict[str, Row] = {}
    strong_views: dict[str, int] = {}
    with _named(problems, ""):
        methods = comparison.methods(config["method"])
    with _named(problems, "recipe."):
        recipe.check_data_parallel(config["resources"]["training"].get("workers", 1))
    seeds = [stream_seed(config["seed"], "training", n) for n in range(comparison.seeds)]
    streams: list[Unlabelled] = []
    with _named(problems, "stream."):
        streams = [_stream(config, recipe, seed) for seed in seeds]
    try:
        train, test, options = open_records(**config["data"])
    except (ValueError, OSError) as error:
        raise Refused("\n  - ".join(["this run cannot be:", *problems, f"data: {error}"])) from None
    drawn: list[Records] = []
    with _named(problems, "labels."):
        drawn = [build(Labels, config["labels"]).draw(train, seed) for seed in seeds]
    network: nn.Module | None = None
    with _named(problems, "model."), torch.device("meta"):
        channels = streams[0].shape[0] if streams else 1
        network = build(MODELS, config["model"], classes=len(train.classes), channels=channels)
    with _named(problems, "optimizer."):
        build(OPTIMIZERS, config["optimizer"], model=nn.Linear(1, 1))
    with _named(problems, "view."):
        view = build(VIEWS, config["view"])
        if streams:
            view.plain(torch.zeros(1, *streams[0].shape, dtype=torch.uint8))
    task = Task(len(train.classes), 1, torch.arange(1))
    for name, row in methods.items():
        own = "method." if name == config["method"]["name"] else f"comparison.rivals.{name}."
        with _named(problems, own), torch.device("meta"):
            method = build(METHODS, row, task=task)
            strong_views[name] = method.views
            if network is not None:
                method.network(network, 0)
    if problems:
        raise Refused("\n  - ".join(["this run cannot be:", *problems]))
    return Prepared(train, test, options, recipe, methods, strong_views, seeds, streams, drawn)


@contextlib.contextmanager
def _named(problems: list[str], place: str) -> Iterator[None]:
    """Collect what is wrong at a place of the configuration."""
    try:
        yield
    except ConfigError as error:
        problems += [f"{place}{problem}" for problem in error.problems]
    except (ValueError, OSError) as error:
        problems.append(f"{place.rstrip('.')}: {error}" if place else str(error))


def _stream(config: dict[str, Any], recipe: SemiRecipe, seed: int) -> Unlabelled:
    if config["stream"].get("paths") is None and (name := config["data"]["name"]) != SAMPLE:
        problem = (
            f"paths: names no shards; must name those of unlabelled images, unless data.name is "
            f"{SAMPLE} (it is {name}); pipelines/prepare_data.py makes them of any data set"
        )
        raise ConfigError("stream", [problem])
    stream: Unlabelled = build(
        STREAMS,
        config["stream"],
        batch_size=recipe.unlabelled_batch_size,
        seed=stream_seed(seed, "unlabelled"),
        view=build(PAIRS, config["views"]),
    )
    return stream


def plan(config: dict[str, Any]) -> list[Phase]:
    """Return the one phase of a run: trainings, each with data workers beside it."""
    ready = prepare(config)
    each = build(WorkerResources, config["resources"]["training"])
    cpus = build(DataResources, config["resources"]["data"]).cpus
    if getattr(ready.streams[0], "workers", None) == 0:
        cpus = 0  # the stream is the trainings' own work
    beside = {"data workers": WorkerResources(workers=cpus * each.workers)} if cpus else None
    return [Phase(TRAINING, len(ready.methods) * len(ready.seeds), each, beside)]


def semi_train(session: Session) -> None:
    """Run all trainings; a run that was stopped goes on from the last checkpoint of each."""
    config, ready = session.config, prepare(session.config)
    check_stream(session, ready)
    each = build(WorkerResources, config["resources"]["training"])
    session.warm(TRAINING, semi_training, each)
    labelled, test = read_images(session, ready)
    session.say(
        f"{len(labelled[0])} labelled, {ready.streams[0].count:,} unlabelled, {len(test)} test "
        f"images of {len(test.classes)} classes; {ready.recipe.steps} steps of "
        f"{ready.recipe.batch_size} + {ready.recipe.unlabelled_batch_size} images"
    )
    if (start := ready.recipe.share_of_start) > LARGE_START:
        session.say(
            f"recipe.ema_decay: after {ready.recipe.steps} steps {start:.0%} of the average are "
            "still the initial weights; lower it, or train longer"
        )
    same = {
        "test": share(test),
        "truths": share(true_labels(session, ready)),
        "recipe": ready.recipe,
        "view": build(VIEWS, config["view"]),
        "views": build(PAIRS, config["views"]),
    } | {part: config[part] for part in ("model", "optimizer", "schedule")}
    jobs = [
        job(session, ready, method, number, same | {"labelled": images})
        for number, images in enumerate(labelled)
        for method in ready.methods
    ]
    results = session.train(TRAINING, jobs, each)
    tell_broken(session, results)
    tell_results(session, ready, results)


def read_images(session: Session, ready: Prepared) -> tuple[list[ImageSet], ImageSet]:
    """Return the labelled images of each seed, and the test images; say of what form they are."""
    drawn = kept_labels(session, ready)
    with session.reading("data"):
        labelled = [load(records, ready.options) for records in drawn]
        test = load(ready.test, ready.options)
    shape, streamed = test.images.shape[1:], ready.streams[0].shape
    for part, found in (("labelled", labelled[0].images.shape[1:]), ("unlabelled", streamed)):
        if found != shape:
            raise Refused(
                f"{part} images have the shape {found}, test images {shape}; set image_size and "
                "channels in 'data' and in 'stream', to the same"
            )
    session.write(TASK, json.dumps({"schema": 1, "classes": test.classes, "shape": shape}))
    return labelled, test


def job(
    session: Session, ready: Prepared, method: str, number: int, same: dict[str, Any]
) -> TrainJob:
    """Return the training of a method with a seed; its seed decides all but the method."""
    name, seed, stream = f"{method}/seed-{number}", ready.seeds[number], ready.streams[number]
    views = build(PAIRS, session.config["views"] | {"strong_views": ready.strong_views[method]})
    folder = session.storage.below(name).uri
    stream = dataclasses.replace(stream, view=views, tell=BrokenImages(folder))
    resources = build(DataResources, session.config["resources"]["data"])
    stream = beside(stream, session.parallel[TRAINING], resources)
    own = {
        "unlabelled": stream,
        "method": ready.methods[method],
        "seed": seed,
        "keep": KeepConfusion(folder),
    }
    place = number * len(ready.methods) + list(ready.methods).index(method)
    params = {"method": method, "seed_number": number, "training_number": place}
    return TrainJob(
        name,
        semi_training,
        same | own,
        seed,
        save_every=ready.recipe.save_every,
        log_every=ready.recipe.log_every,
        params=params | flatten({"method": ready.methods[method]}),
    )


def beside(stream: Unlabelled, trainings: int, resources: DataResources) -> Unlabelled:
    """Return a stream that takes no more than its share, since so many trainings run at once."""
    if not isinstance(stream, RayStream) or trainings == 1:
        return stream
    workers = stream.workers or max(1, resources.cpus)
    return dataclasses.replace(stream, workers=workers, trainings=trainings)


def kept_labels(session: Session, ready: Prepared) -> list[Records]:
    """Return the labelled images of each seed: those that the run began with."""
    if not session.storage.exists(LABELS):
        session.write(LABELS, to_json(ready.drawn))
        return ready.drawn
    with session.reading(LABELS):
        kept = from_json(session.storage.read(LABELS), ready.train)
    sizes, drawn = [len(split) for split in kept], [len(split) for split in ready.drawn]
    if sizes != drawn:
        raise Refused(
            f"{LABELS}: has splits of {sizes} images, and the run began with {drawn}; put the file "
            "back as it was, or start a new run"
        )
    return kept


def check_stream(session: Session, ready: Prepared) -> None:
    """Refuse to go on with other unlabelled images than those that the run began with.

    Raises:
        Refused: there are other ids, or they are cut into other shards.
    """
    stream = ready.streams[0]
    now = {"schema": 1, "images": stream.count, "digest": stream.digest}
    if not session.storage.exists(STREAM):
        session.write(STREAM, json.dumps(now))
    elif (before := json.loads(session.storage.read(STREAM))) != now:
        raise Refused(
            f"stream.paths: {now['images']:,} images where the run began with "
            f"{before['images']:,}, or other ids or shards; what a step sees would be otherwise. "
            "Put the files back as they were, or start a new run"
        )


def true_labels(session: Session, ready: Prepared) -> dict[int, int] | None:
    """Return the true labels of unlabelled images by id, for figures; None where there are none.

    They are taken from the files that are streamed, so they are those of these very images, and
    found by the names of the classes where 'data' selects some; -1 is an image of none of these.
    """
    files, classes = ready.streams[0].files, ready.train.classes
    selected = ready.options.classes is not None or ready.options.num_classes is not None
    try:
        if selected and set(classes).isdisjoint(itertools.chain(*map(named_classes, files))):
            raise ValueError(
                "'data' selects and renumbers classes, and the files of 'stream' name none of "
                "these; pipelines/prepare_data.py writes files that name theirs"
            )
        records = parquet_records(files, None if selected else classes)
    except (ValueError, OSError) as error:
        session.say(f"pseudo-labels cannot be held against true labels: {error}")
        return None
    numbers = [classes.index(name) if name in classes else -1 for name in records.classes]
    labels = np.array(numbers)[records.labels]
    return dict(zip(records.ids.tolist(), labels.tolist(), strict=True))


@dataclass(frozen=True)
class KeepConfusion:
    """Writes the confusion matrix of a finished training into its folder."""

    uri: str

    def __call__(self, matrix: Tensor) -> None:
        """Write the matrix (C, C)."""
        record = {"schema": 1, "confusion": matrix.tolist()}
        open_storage(self.uri).write(CONFUSION, json.dumps(record).encode())


def tell_broken(session: Session, results: Sequence[Result]) -> None:
    """Say which unlabelled images were broken, whichever training and rank met them."""
    configs = (session.recorded, session.config)  # a run may go on with other resources
    workers = max(config["resources"]["training"].get("workers", 1) for config in configs)
    found = [BrokenImages(result.storage.uri).problems(workers) for result in results]
    if problems := sorted(set().union(*found)):
        session.write(BROKEN, "\n".join(problems) + "\n")
        session.say(
            f"{len(problems)} unlabelled images are broken, in whose place others of their shards "
            f"were seen; {BROKEN} names them, as {problems[0]}"
        )


def tell_results(session: Session, ready: Prepared, results: Sequence[Result]) -> None:
    """Write and print what the methods are worth, and how their pseudo-labels went."""
    rows, curves = [], []
    matrices: dict[str, Any] = {}
    for result in results:
        method, seed = result.name.split("/seed-")
        place = {"method": method, "seed": int(seed)}
        child = session.child(result.name, phase=TRAINING)
        history = child.history()
        curve = over_steps(history, len(ready.train.classes))
        late = curve[curve["step"] > (1.0 - LATE) * result.steps].mean()
        final = {figure: late[figure] for figure in FIGURES.values() if figure in late}
        child.log(result.steps, {f"pseudo_labels/{name}": value for name, value in final.items()})
        if len(curve):
            curves.append(curve.assign(**place))
        matrix = np.array(json.loads(result.storage.read(CONFUSION))["confusion"])
        matrices[method] = matrices.get(method, 0) + matrix
        child.text(json.dumps(matrix.tolist()), CONFUSION)
        known = {name.removeprefix("test/"): v for name, v in result.metrics.items()}
        rows.append(place | known | final | {"steps": result.steps, "seconds": result.seconds})
    table = pd.DataFrame(rows)
    subject = next(reversed(ready.methods))
    write_tables(session, table, matrices, subject, ready.train.classes)
    draw_pictures(session, table, curves, matrices, subject, ready.train.classes)


def over_steps(history: dict[str, list[tuple[int, float]]], classes: int) -> pd.DataFrame:
    """Return a row for each logged step with the figures of the pseudo-labels that there are."""
    names = FIGURES | {f"class_share/{label}": f"class_{label}" for label in range(classes)}
    columns = {
        column: pd.Series(dict(history[f"train/{name}"]), dtype=float)
        for name, column in names.items()
        if f"train/{name}" in history
    }
    return pd.DataFrame(columns).rename_axis("step").reset_index()


def write_tables(
    session: Session,
    table: pd.DataFrame,
    matrices: dict[str, Any],
    subject: str,
    classes: Sequence[str],
) -> None:
    """Print accuracy and pseudo-labels by method, and write all figures of all trainings."""
    texts, tables = [], {}
    for value, heading, metric in (
        ("top1", "top-1 %", "test/top1"),
        ("correct", "correct pseudo-labels %", "pseudo_labels/correct"),
    ):
        if value in table:
            compared = report.comparison(
                table, subject=subject, interval=paired_difference, value=value
            )
            texts.append(report.comparison_text(compared, subject=subject, heading=heading))
            tables[value] = json.loads(compared.to_json(orient="records"))
            for row in tables[value]:
                session.parent.log(0, {f"{metric}/{row['method']}": row["mean"]})
    session.parent.log(0, {"time/trainings_s": table["seconds"].sum()})
    per_class = report.class_accuracy(matrices, classes)
    session.write("class_accuracy.csv", per_class.to_csv(index=False))
    record = {name: matrix.tolist() for name, matrix in matrices.items()}
    session.write(CONFUSION, json.dumps({"schema": 1, "classes": list(classes), "sums": record}))
    results = json.loads(table.to_json(orient="records"))
    summary = {"schema": 1, "tables": tables, "results": results}
    session.write("results.json", json.dumps(summary, indent=1))
    session.write("results.md", "\n\n".join(texts) + "\n")
    print("\n" + "\n\n".join(texts))
    if len(matrices) > 1:
        print("\nA difference is one only if its interval leaves out 0.")


def draw_pictures(
    session: Session,
    table: pd.DataFrame,
    curves: Sequence[pd.DataFrame],
    matrices: dict[str, Any],
    subject: str,
    classes: Sequence[str],
) -> None:
    """Draw pseudo-labels over the steps, confusion, and the comparison if there is one."""
    figures = {"confusion.png": report.confusion(matrices, classes)}
    if curves:  # not of supervised learning, which has no pseudo-labels
        told = pd.concat(curves)
        figures["pseudo_labels.png"] = report.pseudo_labels(told)
        figures["class_histogram.png"] = report.class_histogram(told, classes)
    if len(matrices) > 1:
        compared = report.comparison(table, subject=subject, interval=paired_difference)
        figures["comparison.png"] = report.comparison_figure(table, compared, subject=subject)
    for name, figure in figures.items():
        session.write(name, report.png(figure))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        semi_train,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        plan=plan,
        may_change=MAY_CHANGE,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
