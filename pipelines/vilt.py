"""Learn from images with captions, and say what finds which.

ViLT, which sees an image and a text together, is trained beside two towers of the same size, which
see them apart, from the same initial weights on the same pairs in the same order, over several
seeds. What was learnt is measured on pictures that were held out: images found by text and texts by
image (R@1, 5, 10), classes by their names as texts, and a copy that is fine-tuned as a classifier.
With no option it trains on the emoji that come with raykb, in a few minutes on two cores.

  vilt.py --set 'data={name: parquet, train: datasets/emoji/train, test: datasets/emoji/test}'
  vilt.py --set captions.vocabulary=vocab.txt --set model.vocabulary=30522

Papers: Kim, Son, Kim, "ViLT", ICML 2021, arXiv:2102.03334; Radford et al., "CLIP", ICML 2021,
arXiv:2103.00020.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(__file__, __doc__)  # --help, before the imports below take their seconds

from collections.abc import Sequence
from typing import Any

from raykb.assembly import (
    RECIPE,
    SECTIONS,
    Captions,
    Pairs,
    compared,
    pair_data,
    rehearse_all,
    training,
)
from raykb.augment.augmentations import AUGMENTATIONS
from raykb.config import Problems, Section, build
from raykb.data.pairs import PairSet
from raykb.data.wordpiece import WordPiece
from raykb.engine.recipe import Recipe
from raykb.evaluate.fine_tuning import FineTuning
from raykb.later import Later
from raykb.models import IMAGE_TEXT
from raykb.recognition import PAIR_METHODS
from raykb.runtime.comparison_run import TRAINING, ComparisonRun
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS
from raykb.runtime.session import Session
from raykb.runtime.work import TrainJob

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "pairs" / "vilt_emoji.yaml"
VOCABULARY = "vocab.txt"
RECALLS = [f"test/retrieval/{what}_recall_{k}" for what in ("image", "text") for k in (1, 5, 10)]
VARIED = {name: AUGMENTATIONS[name] for name in ("none", "rand_augment")}  # without inversion
SCHEMA = SECTIONS | {
    "captions": Captions,
    "model": Section(IMAGE_TEXT, given=("classes", "channels"), default="vilt"),
    "augmentation": Section(VARIED, given=("seed",), default="none"),
    "method": Section(PAIR_METHODS, given=("task",), default="vilt"),
    "fine_tuning": Section(FineTuning),
    "recipe": RECIPE,
    "comparison": compared(seeds=3),
    "resources.training": WORKERS,
}


Ready = ComparisonRun[Pairs]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the data, and build every training without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems = Problems()
    data = Pairs.opened(config, problems)
    rehearse_all(config, PAIR_METHODS, data.stand_in, data.shape, problems, models=IMAGE_TEXT)
    problems.refuse()
    return Ready.of(config, data)


def vilt(session: Session, ready: Ready) -> None:
    """Run all trainings; a run that was stopped goes on from the last checkpoint of each."""
    session.warm(TRAINING, training, ready.each)
    own = "\n".join(ready.data.vocabulary.vocabulary)
    data = ready.data.kept(session.keep(VOCABULARY, own + "\n"))
    with session.reading("data"):
        sets = data.read(session.config["model"]["text_length"])
    session.tell_data(**{part: pairs.images for part, pairs in sets.items()})
    recipe = build(Recipe, session.config["recipe"])
    steps = recipe.lengths(len(sets["train"])).steps
    session.say(f"{steps} steps of {recipe.batch_size} pairs, {len(data.vocabulary)} tokens")
    given: dict[str, Any] = {"methods": PAIR_METHODS, "models": IMAGE_TEXT, "data": pair_data}
    given |= session.share(vocabulary=data.vocabulary, **sets)
    results = ready.train(session, lambda e: TrainJob.of(e, training, ready.each, **given))
    told = session.told(TRAINING, results)
    shown = build(Captions, session.config["captions"]).shown(sets["test"])
    for each in told:
        if each.seed == 0:
            for name, figure in pictures(each, shown, data.vocabulary).items():
                session.write(f"{name}_{each.label}.png", report.png(figure))
    rows = [{"label": each.label, "seed": each.seed} | each.metrics for each in told]
    share = 100 * max(session.config["fine_tuning"]["shares"])
    classified = ["test/prompts/top1", f"test/fine_tuning/top1_{share:g}"]
    session.tell(ready.comparison, rows, [*RECALLS, *classified])


def pictures(told: Any, shown: PairSet, vocabulary: WordPiece) -> dict[str, Any]:
    """Return what some pairs that are shown find, and where words are if seen with images."""
    label, images = told.label.replace("_", " "), shown.images.images
    retrieved, title = told.details["retrieval"], f"{label}: what captions and pictures find"
    made = {"found": report.retrieved(retrieved, images, shown.captions, title=title)}
    if "alignment" in told.details:
        aligned, title = told.details["alignment"], f"{label}: onto which patches words are moved"
        made["aligned"] = report.aligned(aligned, images, vocabulary.decode, title=title)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        vilt,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="image-text",
        prepare=prepare,
        may_change=("resources",),
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
