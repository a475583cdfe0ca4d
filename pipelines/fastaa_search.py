"""Fast AutoAugment: search an augmentation policy by density matching, and say what it is worth.

One network per split is trained without the searched policy; policies are searched under which
these networks still recognise the split's held-out images; the best are merged; then a network is
trained with the result and with what it has to beat, over several seeds. With no option it runs
on the images that come with raykb, in minutes on two cores.

Paper: Lim et al., "Fast AutoAugment", NeurIPS 2019, arXiv:1905.00397.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(__file__, __doc__)  # --help, before the imports below take their seconds

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from raykb.assembly import Data, classifier_data, network_of, rehearse, training
from raykb.augment.augmentations import AUGMENTATIONS, augmentation
from raykb.augment.contact_sheet import contact_sheet
from raykb.augment.density_matching import DensityMatching
from raykb.augment.fast_autoaugment import SCORES, best, merge, policy_from, search_space
from raykb.augment.fast_autoaugment import Candidate as Scored
from raykb.augment.policy import Policy
from raykb.augment.settings import SearchSettings
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, Value, build
from raykb.data.datasets import DATASETS, open_records
from raykb.data.images import ImageSet
from raykb.data.loading import load
from raykb.data.options import Options
from raykb.data.records import Records
from raykb.data.splits import SPLITS, stratified_chunks, stratified_subset
from raykb.data.views import VIEWS
from raykb.engine.objective import OBJECTIVES
from raykb.engine.optim import OPTIMIZERS, SCHEDULES
from raykb.engine.recipe import RENAMED, Recipe
from raykb.engine.seeding import stream_seed
from raykb.models import MODELS
from raykb.report.figures import png
from raykb.report.images import image_columns
from raykb.report.search import operation_use, search_history
from raykb.runtime.job import launch
from raykb.runtime.resources import RENAMED as RENAMED_RESOURCES
from raykb.runtime.resources import Phase, WorkerResources
from raykb.runtime.session import Session
from raykb.runtime.studies import Candidate, Halving, Study, searched
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob

DEFAULT = Path(__file__).parent / "configs" / "augment" / "fastaa_fashion_mnist_sample.yaml"
THETA, SEARCH, FINAL = "theta trainings", "policy search", "final trainings"
SCHEMA = {
    "seed": Value(int, 0),
    "data": DATASETS,
    "view": VIEWS,
    "augmentation": Section(AUGMENTATIONS, given=("seed", "searched"), default="searched_policy"),
    "model": Section(MODELS, given=("classes", "channels")),
    "method": Section(OBJECTIVES, given=("task",), default="cross_entropy"),
    "optimizer": Section(OPTIMIZERS, given=("model",)),
    "schedule": SCHEDULES,
    "splits": Section(SPLITS, given=("labels",)),
    "theta": Section(Recipe, renamed=RENAMED),
    "search": SearchSettings,
    "final": Section(Recipe, renamed=RENAMED),
    "comparison": Section(Comparison, rows={"rivals": "over"}, renamed={"augmentations": "rivals"}),
    "resources.theta": Section(WorkerResources, renamed=RENAMED_RESOURCES),
    "resources.evaluators": Section(WorkerResources, renamed=RENAMED_RESOURCES),
    "resources.final": Section(WorkerResources, renamed=RENAMED_RESOURCES),
}


@dataclass
class Ready:
    """What a run is made of before anything starts; no image is decoded yet, but for one."""

    train: Records
    test: Records
    options: Options
    data: Data
    settings: SearchSettings
    comparison: Comparison
    resources: dict[str, WorkerResources]
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the data, and build every kind of training of the run without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems = Problems()
    settings = build(SearchSettings, config["search"])
    comparison = build(Comparison, config["comparison"])
    resources = {name: build(WorkerResources, part) for name, part in config["resources"].items()}
    with problems.at("data", config["data"]):
        train, test, options = open_records(**config["data"])
        shape = load(test.subset(np.arange(1)), options).images.shape[1:]
        data = Data(feed=None, samples=len(train), classes=len(train.classes), channels=shape[0])
    problems.refuse("this run cannot be")
    for phase in ("theta", "final"):
        rehearse(
            config | {"recipe": config[phase]},
            OBJECTIVES,
            data,
            shape,
            problems,
            places={"recipe": phase},
            workers=resources[phase].workers,
        )
    count = 0
    with problems.at("comparison", config["comparison"]):
        count = len(comparison.trainings(config))
    problems.refuse("this run cannot be")
    splits = config["splits"]["splits"]
    phases = [
        Phase(THETA, splits, resources["theta"]),
        Phase(SEARCH, splits * settings.evaluators_per_split, resources["evaluators"]),
        Phase(FINAL, count, resources["final"]),
    ]
    return Ready(train, test, options, data, settings, comparison, resources, phases)


def fastaa_search(session: Session, ready: Ready) -> None:
    """Run search and comparison; what an earlier run of the directory finished is not redone."""
    config, settings = session.config, ready.settings
    session.warm(THETA, training, ready.resources["theta"])
    with session.reading("data"):
        train, test = load(ready.train, ready.options), load(ready.test, ready.options)
        splits = draw_splits(config, settings, train.labels)
    tell_data(session, train, test)
    images = {"train": session.machine.share(train), "test": session.machine.share(test)}

    thetas = session.train_all(
        THETA, [theta(ready, config, images, n, rest) for n, (rest, _) in enumerate(splits)]
    )
    candidates = search(session, ready, train, [held_out for _, held_out in splits], thetas)
    kept = {study: best(found, settings.keep) for study, found in by_study(candidates).items()}
    policy = merge([candidate.policy for found in kept.values() for candidate in found])
    tell_search(session, settings, candidates, kept, policy, train)

    entries = ready.comparison.trainings(config, "final")
    finals = session.compare(
        FINAL, ready.comparison, [(entry, final(ready, images, entry, policy)) for entry in entries]
    )
    rows = [
        {"label": entry.label, "seed": entry.number} | result.metrics for entry, result in finals
    ]
    session.tell(ready.comparison, rows, ["test/top1"], about={"search": tell_speed(session)})


def draw_splits(
    config: dict[str, Any], settings: SearchSettings, labels: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each split's positions to train on and to hold out, of the images searched on."""
    drawn = stratified_subset(labels, settings.images or len(labels), seed=config["seed"])
    splits = build(SPLITS, config["splits"], labels=labels[drawn])
    for _, held_out in splits:  # refused now rather than after the theta trainings
        stratified_chunks(labels[drawn], held_out, settings.chunks)
    return [(drawn[rest], drawn[np.sort(held_out)]) for rest, held_out in splits]


def theta(
    ready: Ready, config: dict[str, Any], images: dict[str, Any], split: int, rest: np.ndarray
) -> TrainJob:
    """Return the training of the network of ``split`` on the ``rest`` that it does not hold."""
    seed = stream_seed(config["seed"], "theta", split)
    return TrainJob(
        f"theta/split-{split}",
        training,
        images
        | {
            "config": config | {"recipe": config["theta"]},
            "methods": OBJECTIVES,
            "data": classifier_data,
            "rows": rest,
            "seed": seed,
        },
        seed,
        ready.resources["theta"],
        params={"split": split},
    )


def final(ready: Ready, images: dict[str, Any], entry: Entry, policy: Policy) -> TrainJob:
    """Return the training of an entry of the comparison, on all images."""
    config = entry.config | {"recipe": entry.config["final"]}
    given = augmentation(config["augmentation"], seed=entry.seed, searched=policy)
    if not given.cutout and "cutout" in config["view"]:
        config["view"] = config["view"] | {"cutout": 0}
    return TrainJob(
        f"final/{entry.name}",
        training,
        images
        | {
            "config": config,
            "methods": OBJECTIVES,
            "data": classifier_data,
            "augmentation": given,
            "seed": entry.seed,
        },
        entry.seed,
        ready.resources["final"],
    )


def search(
    session: Session,
    ready: Ready,
    train: ImageSet,
    held_out: Sequence[np.ndarray],
    thetas: Sequence[Result],
) -> list[Candidate]:
    """Score B candidates for each split and round; return them all."""
    config, settings, each = session.config, ready.settings, ready.resources["evaluators"]
    chunks = [
        stratified_chunks(train.labels[part], np.arange(len(part)), settings.chunks)
        for part in held_out
    ]
    studies = [
        Study(
            f"split-{split}/round-{turn}",
            f"split-{split}",
            stream_seed(config["seed"], "study", split, turn) % 2**32,
            {"split": split, "round": turn},
        )
        for split in range(len(held_out))
        for turn in range(settings.rounds)
    ]
    return session.search(
        SEARCH,
        len(studies) * settings.width,
        functools.partial(log_candidate, session, settings, {}),
        studies=studies,
        space=search_space(settings.sub_policies, settings.operations),
        width=settings.width,
        sampler_name=settings.sampler,
        per_group=settings.evaluators_per_split,
        score=DensityMatching(
            network=functools.partial(network_of, config, ready.data),
            view=build(VIEWS, config["view"]),
            held_out=held_out,
            chunks=chunks,
            copies=settings.copies,
            reward=settings.reward,
            seed=config["seed"],
            batch_size=settings.batch_size,
            device=each.device,
            autocast=settings.precision == "bf16",
        ),
        shared={"train": train, "thetas": [result.state() for result in thetas]},
        resources=each,
        parts=settings.chunks,
        halving=Halving(reduction_factor=settings.halving_factor) if settings.chunks > 1 else None,
        retries=settings.retries,
    )


def log_candidate(
    session: Session, settings: SearchSettings, best_so_far: dict[str, float], candidate: Candidate
) -> None:
    """Log a candidate as a step of its split's run, and as a run of its own if that is wanted."""
    fields = candidate.study.fields
    run = session.child(f"search/split-{fields['split']}", phase=SEARCH)
    if candidate.status == "finished":
        top = max(best_so_far.get(run.key, -np.inf), candidate.figures["reward"])
        best_so_far[run.key] = top
        figures = {f"search/{name}": value for name, value in candidate.figures.items()}
        step = candidate.number + fields["round"] * settings.width
        run.log(step, figures | {"search/best": top})
    if settings.every_candidate_a_child:
        child = session.child(f"{candidate.study.name}/{candidate.number:04d}", phase=SEARCH)
        child.params(candidate.params)
        child.log(0, candidate.figures)
        child.finish("FINISHED" if candidate.status == "finished" else "FAILED")


def by_study(candidates: Sequence[Candidate]) -> dict[str, list[Scored]]:
    """Return the candidates that were scored to the end, by study."""
    studies: dict[str, list[Scored]] = {}
    for candidate in candidates:
        if candidate.status == "finished":
            policy = policy_from(candidate.params)
            found = Scored(candidate.number, candidate.figures["reward"], policy)
            studies.setdefault(candidate.study.name, []).append(found)
    return studies


def tell_data(session: Session, train: ImageSet, test: ImageSet) -> None:
    """Say what is trained and tested on, and what had to be left out."""
    skipped = train.skipped + test.skipped
    session.say(f"{len(train)} training images, {len(test)} test images, {len(skipped)} skipped")
    figures = {"train": len(train), "test": len(test), "skipped": len(skipped)}
    session.parent.log(0, {f"data/{name}": count for name, count in figures.items()})
    if skipped:
        session.write("skipped.txt", "\n".join(skipped))


def tell_search(
    session: Session,
    settings: SearchSettings,
    candidates: Sequence[Candidate],
    kept: dict[str, list[Scored]],
    policy: Policy,
    train: ImageSet,
) -> None:
    """Write the policy, the history of all candidates, and the pictures of the search."""
    history = pd.DataFrame([row(candidate) for candidate in candidates])
    scores = {study: [candidate.reward for candidate in found] for study, found in kept.items()}
    session.write("policy.json", policy.to_json({"reward": settings.reward, "scores": scores}))
    session.write("history.parquet", history.to_parquet())
    sheet = contact_sheet(policy, torch.from_numpy(train.images[:8]))
    figures = {
        "search_history.png": search_history(history, settings.reward),
        "operation_use.png": operation_use(policy.statistics().usage),
        "contact_sheet.png": image_columns(sheet),
    }
    for name, figure in figures.items():
        session.write(name, png(figure))
    params = {(c.study.name, c.number): c.params for c in candidates}
    for study, found in kept.items():
        for rank, candidate in enumerate(found):
            child = session.child(f"policy/{study}/rank-{rank:02d}", phase=SEARCH)
            child.params(params[study, candidate.number])
            child.log(candidate.number, {"search/reward": candidate.reward})
            child.finish()


def row(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as a row of the history."""
    scores = {name: candidate.figures.get(name) for name in (*SCORES, "reward", "seconds")}
    outcome = {"number": candidate.number, "status": candidate.status, "error": candidate.error}
    return candidate.study.fields | outcome | scores | candidate.params


def tell_speed(session: Session) -> dict[str, float]:
    """Say how long the search took; return that."""
    seconds, count = searched(session.storage)
    speed = {"candidates": count, "seconds": seconds, "evaluations_per_second": count / seconds}
    session.parent.log(0, {f"search/{name}": value for name, value in speed.items()})
    session.say(f"{count} candidates in {seconds:.0f} s of search")
    return speed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        fastaa_search,
        description=__doc__,
        default=DEFAULT,
        schema=SCHEMA,
        prepare=prepare,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
