"""Train a classifier, and say what a regularisation of its images is worth.

Batches are mixed as CutMix, MixUp or Cutout have it, or not at all, and a network is trained with
each over several seeds, from the same initial weights on the same images in the same order. Beside
accuracy stands how well the network tells images of other kinds from its own. With no option it
does so on the images that come with raykb, in a few minutes on two cores.

  train.py --set 'mixing={name: mixup, alpha: 0.2}' --set comparison.rivals={}
  train.py --set 'comparison={over: model, rivals: {wide: {name: small_convnet, width: 32}}}'

Papers: Yun et al., "CutMix", ICCV 2019, arXiv:1905.04899; Zhang et al., "mixup", ICLR 2018,
arXiv:1710.09412; DeVries and Taylor, "Cutout", 2017, arXiv:1708.04552.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(__file__, __doc__)  # --help, before the imports below take their seconds

from collections.abc import Sequence
from typing import Any

import numpy as np

from raykb.assembly import (
    RECIPE,
    SECTIONS,
    Recognition,
    compared,
    recognition_data,
    rehearse_all,
    training,
)
from raykb.comparison import Entry
from raykb.config import Problems, Section, build
from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.data.scenes import Composition, Scenes
from raykb.engine.recipe import Recipe
from raykb.evaluate.robustness import Robustness
from raykb.evaluate.weak_localisation import WeakLocalisation
from raykb.later import Later
from raykb.recognition import METHODS, MIXINGS
from raykb.runtime.comparison_run import TRAINING, ComparisonRun
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS
from raykb.runtime.session import Session
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "recognition" / "fashion_mnist_sample.yaml"
WEAK = [
    f"test/weak_localisation/{name}" for name in ("saol/top1", "cam/top1_iou50", "saol/top1_iou50")
]
METRICS = ("test/top1", "test/loss", "test/corruption/error", "test/ood/auroc", *WEAK)
SCHEMA = SECTIONS | {
    "outside": Section(DATASETS, optional=True),
    "scenes": Section(Composition, given=("objects",), optional=True),
    "corruption": Section(Robustness, optional=True),
    "weak_localisation": Section(WeakLocalisation, optional=True),
    "mixing": Section(MIXINGS, default="none"),
    "method": Section(METHODS, given=("task",), default="cross_entropy"),
    "recipe": RECIPE,
    "comparison": compared(over="mixing"),
    "resources.training": WORKERS,
}


Ready = ComparisonRun[Recognition]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the data, and build every training without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems = Problems()
    data = Recognition.opened(config, problems)
    objectives = rehearse_all(config, METHODS, data.stand_in, data.shape, problems)
    problems.refuse()
    run = Ready.of(config, data)
    for label, entry in run.comparison.entries(config).items():
        if (objective := objectives[label]) is not None:
            with problems.at("mixing", entry["mixing"]):
                data.check_mixed(objective, entry)
            with problems.at("model", entry["model"]):
                data.check_localised(entry)
    problems.refuse()
    return run


def train(session: Session, ready: Ready) -> None:
    """Run all trainings; a run that was stopped goes on from the last checkpoint of each."""
    session.warm(TRAINING, training, ready.each)
    with session.reading("data"):
        sets = ready.data.read()
    session.tell_data(**sets)
    session.keep_task(ready.data.seen(sets["test"]))
    recipe = build(Recipe, session.config["recipe"])
    steps = recipe.lengths(len(sets["train"])).steps
    session.say(f"{steps} steps of {recipe.batch_size} images")
    given = {"methods": METHODS, "data": recognition_data, **session.share(**sets)}
    results = ready.train(session, lambda e: TrainJob.of(e, training, ready.each, **given))
    tell_results(session, ready, results, sets["test"])


def tell_results(
    session: Session, ready: Ready, results: Sequence[tuple[Entry, Result]], test: ImageSet
) -> None:
    """Write and print what the trainings are worth, which classes are confused, and how it went."""
    told = session.told(TRAINING, results)
    found = report.told_of(told, ready.data.labelled.train.classes)
    for name, content in found.files.items():
        session.write(name, content)
    session.write("curves.png", report.png(report.probe_curves(told, METRICS[0])))
    how = ready.data.scenes
    for each in told:
        if each.seed == 0 and how is not None and "weak_localisation" in each.details:
            picture = where_seen(session.config, each, Scenes(test, how), test.classes)
            session.write(f"{each.label}/attention.png", report.png(picture))
    session.tell(ready.comparison, found.rows, METRICS)


def where_seen(config: dict[str, Any], told: Any, test: Scenes, classes: Sequence[str]) -> Any:
    """Return a picture of where a training's network sees the classes of some test scenes."""
    heads = told.details["weak_localisation"]
    rows = np.arange(len(heads["cam"]["labels"]))
    scenes = build(WeakLocalisation, config["weak_localisation"]).asked(test).read(rows)
    title = f"{told.label}: scenes of test images, and where their class is seen"
    return report.attention(**scenes.arrays, heads=heads, classes=classes, title=title)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        train,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="recognition",
        prepare=prepare,
        may_change=("resources",),
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
