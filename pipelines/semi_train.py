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
from typing import Any

from raykb.assembly import (
    RECIPE,
    SECTIONS,
    SemiSupervised,
    compared,
    rehearse_all,
    semi_supervised_data,
    training,
)
from raykb.comparison import Entry
from raykb.config import Problems, Renamed, Section
from raykb.data.labels import Labels, to_json
from raykb.data.normalisation import form
from raykb.data.strong import PAIRS
from raykb.data.unlabelled import UnlabelledImages
from raykb.later import Later
from raykb.runtime.comparison_run import TRAINING, ComparisonRun
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, DataResources
from raykb.runtime.session import Session
from raykb.runtime.streamed import data_workers, stream_of, tell_broken
from raykb.runtime.streams import STREAM, TRANSPORTS
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob
from raykb.semi import METHODS

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "semi" / "fashion_mnist_sample.yaml"
LABELS, UNLABELLED = "labels.json", "stream.json"
METRICS = ("test/top1", "pseudo_labels/correct")
SCHEMA = SECTIONS | {
    "labels": Labels,
    "unlabelled": Section(UnlabelledImages, derived=form),
    "pair": Section(PAIRS, given=("strong_views",), default="fixmatch"),
    "stream": STREAM,
    "method": Section(METHODS, given=("task",)),
    "recipe": RECIPE,
    "comparison": compared(),
    "resources.training": WORKERS,
    "resources.data": DataResources,
    "views": Renamed("pair"),
}


Ready = ComparisonRun[SemiSupervised]


def prepare(config: dict[str, Any]) -> Ready:
    """Open data and stream, draw the labels, and build every training without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems = Problems()
    data = SemiSupervised.opened(config, TRANSPORTS, problems)
    objectives = rehearse_all(config, METHODS, data.stand_in, data.shape, problems)
    problems.refuse()
    return Ready.of(config, data, sees=objectives, beside=data_workers(config))


def semi_train(session: Session, ready: Ready) -> None:
    """Run all trainings; a run that was stopped goes on from the last checkpoint of each."""
    data = ready.data
    session.unchanged(UNLABELLED, data.record, "unlabelled.paths")
    session.warm(TRAINING, training, ready.each)
    with session.reading(LABELS):  # as the run began with them, whatever would be drawn now
        drawn = data.kept(session.keep(LABELS, to_json(data.drawn)))
    with session.reading("data"):
        labelled, test = data.read(drawn)
    session.keep_task(test)
    session.say(data.described(session.config, labelled[0], test))
    images = session.share(test=test, truths=data.truths(session.say), ids=data.examples.ids)

    def job(entry: Entry) -> TrainJob:
        return TrainJob.of(
            entry,
            training,
            ready.each,
            methods=METHODS,
            data=semi_supervised_data,
            labelled=labelled[entry.number],
            unlabelled=stream_of(session, TRAINING, data, entry, ready.sees[entry.label]),
            **images,
        )

    results = ready.train(session, job)
    tell_broken(session, [result for _, result in results])
    tell_results(session, ready, results)


def tell_results(session: Session, ready: Ready, results: Sequence[tuple[Entry, Result]]) -> None:
    """Write and print what the methods are worth, and how their pseudo-labels went."""
    found = report.told_of(session.told(TRAINING, results), ready.data.train.classes)
    for row, (_, result) in zip(found.rows, results, strict=True):
        child = session.child(result.name, phase=TRAINING)
        own = {name: value for name, value in row.items() if name.startswith("pseudo_labels/")}
        child.log(result.steps, own)
        child.text(json.dumps(result.details()["confusion"]), "confusion.json")
    session.tell(ready.comparison, found.rows, METRICS)
    session.write_all(found.files)


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
