"""Learn which transformation each test image wants, and say what such a choice is worth.

A small network predicts, from a thumbnail, after which of twelve transformations a frozen target
network would lose least on this very image. Targets are trained first, or one is read; workers
table their losses on hard training images, side by side, and predictors learn from the tables. They
are held against no transformation, random ones, mirror, five crops and an oracle, on corrupted
images. With no option it does so on the images that come with raykb, in minutes on two cores.

  tta.py --set target.weights=runs/train-1/cutmix/seed-0/final.pt --set comparison.seeds=3
  tta.py --set selection.severities=[5] --set selection.threshold=1.5
  tta.py --set selection.judged_on=valid         # to choose settings without the test images

Paper: Kim, Kim, Kim, "Learning Loss for Test-Time Augmentation", NeurIPS 2020, arXiv:2010.11422.
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
from typing import Any

from raykb.assembly import (
    RECIPE,
    SECTIONS,
    State,
    Supervised,
    classifier_data,
    compared,
    training,
)
from raykb.assembly.loss_prediction import (
    Selection,
    Tables,
    loss_prediction_data,
    rehearse_predictors,
    rehearse_target,
    target_config,
)
from raykb.augment.choices import told_rows, ways_to_choose
from raykb.augment.hard_inputs import HARDENINGS
from raykb.augment.loss_prediction import OBJECTIVES as PREDICTION
from raykb.augment.loss_tables import joined
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, Value, build
from raykb.data.images import ImageSet
from raykb.engine.objective import OBJECTIVES
from raykb.later import Later
from raykb.models import MODELS, PREDICTORS
from raykb.runtime.file_jobs import FileJob, make_files
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, Phase, WorkerResources, workers_of
from raykb.runtime.session import Session
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "augment" / "tta_fashion_mnist_sample.yaml"
TARGETS, TABLES, PREDICTIONS = "target networks", "loss tables", "predictors"
METRICS = ("test/error", "test/clean_error", "test/mce", "test/passes")
GIVEN = ("classes", "channels")
SCHEMA = {name: SECTIONS[name] for name in ("data", "view", "optimizer", "schedule")} | {
    "target.weights": Value(str | None, None),
    "target.model": Section(MODELS, given=GIVEN),
    "target.optimizer": SECTIONS["optimizer"],
    "target.schedule": SECTIONS["schedule"],
    "target.method": Section(OBJECTIVES, given=("task",), default="cross_entropy"),
    "target.recipe": RECIPE,
    "hardening": Section(HARDENINGS, default="extra_four"),
    "selection": Selection,
    "model": Section(PREDICTORS, given=GIVEN),
    "method": Section(PREDICTION, given=("task",), default="loss_prediction"),
    "recipe": RECIPE,
    "comparison": compared(over="hardening", rivals={"same_fifteen": {"name": "same_fifteen"}}),
    "resources.target": WORKERS,
    "resources.tables": WORKERS,
    "resources.predictor": WORKERS,
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: Supervised
    tables: Tables
    comparison: Comparison
    resources: dict[str, WorkerResources]
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the data, and build target network and predictors without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems, resources = Problems(), workers_of(config)
    comparison = build(Comparison, config["comparison"])
    with problems.at("data", config["data"]):
        data = Supervised.opened(config["data"])
    problems.refuse()
    state = rehearse_target(config, OBJECTIVES, data, problems, resources["target"].workers)
    rehearse_predictors(config, PREDICTION, PREDICTORS, data, problems)
    problems.refuse()
    each = resources["tables"]
    tables = Tables(config, data.stand_in, state, each.device, each.cpus)
    trained = 0 if state is not None else comparison.seeds
    phases = [Phase(TARGETS, trained, resources["target"])] if trained else []
    phases.append(Phase(TABLES, tables.pieces(len(data.train), comparison), each))
    count = len(comparison.trainings(config))
    phases.append(Phase(PREDICTIONS, count, resources["predictor"]))
    return Ready(data, tables, comparison, resources, phases)


def tta(session: Session, ready: Ready) -> None:
    """Train targets, table their losses, train predictors; what was finished is not redone."""
    with session.reading("data"):
        train, test = ready.data.read()
        train, test = ready.tables.parts(train, test)
    session.tell_data(train=train, test=test)
    session.keep_task(test)
    states = target_states(session, ready, train, test)
    jobs = predictors(session, ready, states, train, test)
    results = session.compare(PREDICTIONS, ready.comparison, jobs)
    tell_results(session, ready, results)


def target_states(session: Session, ready: Ready, train: ImageSet, test: ImageSet) -> list[State]:
    """Return the target network's weights of each seed: those that were read, or trained ones."""
    seeds = ready.comparison.seeds_of(session.config)
    if ready.tables.state is not None:
        return [ready.tables.state] * len(seeds)
    given: dict[str, Any] = {"methods": OBJECTIVES, "data": classifier_data}
    given |= session.share(train=train, test=test) | {"config": target_config(session.config)}
    each, own = ready.resources["target"], target_config(session.recorded)
    jobs = [
        TrainJob(f"target/seed-{n}", training, given | {"seed": seed}, seed, each, config=own)
        for n, seed in enumerate(seeds)
    ]
    return [result.state() for result in session.train_all(TARGETS, jobs)]


def predictors(
    session: Session, ready: Ready, states: Sequence[State], train: ImageSet, test: ImageSet
) -> list[tuple[Entry, TrainJob]]:
    """Make the tables of all seeds; return the trainings that read them."""
    entries = ready.comparison.trainings(session.config)
    targets = [ready.tables.target(state) for state in states]
    seen = [ready.tables.conditions(target, test) for target in targets]
    learnt = {e.name: ready.tables.losses(targets[e.number], train, e) for e in entries}
    pieces = [piece for own in (*seen, *learnt.values()) for piece in own.values()]
    jobs = {piece.name: FileJob(**vars(piece)) for piece in pieces}  # some are of several tables
    make_files(session, TABLES, list(jobs.values()), each=ready.resources["tables"])
    read, share = session.storage.read, session.machine.share
    shown = [share({n: joined([read(p.name)]) for n, p in own.items()}) for own in seen]
    tables = {n: share(joined(read(p.name) for p in own.values())) for n, own in learnt.items()}
    each, given = ready.resources["predictor"], dict[str, Any](data=loss_prediction_data)
    given |= {"methods": PREDICTION, "models": PREDICTORS}
    own = {e.name: {"table": tables[e.name], "conditions": shown[e.number]} for e in entries}
    return [(e, TrainJob.of(e, training, each, **given, **own[e.name])) for e in entries]


def tell_results(session: Session, ready: Ready, results: list[tuple[Entry, Result]]) -> None:
    """Write and print what every way to choose is worth, by corruption, and what was chosen."""
    subject = ready.comparison.subject(session.config)
    found = [(entry.label, entry.number, result.metrics) for entry, result in results]
    labels = ways_to_choose(list(ready.comparison.rivals), subject)
    table = dataclasses.replace(ready.comparison, added={label: {} for label in labels})
    own = [result.details() for entry, result in results if entry.label == subject]
    session.write("corruptions.md", report.errors_by_corruption(own) + "\n")
    title = f"{subject}: what is chosen of each image, k = 1"
    session.write("chosen.png", report.png(report.chosen(own, title=title)))
    session.tell(table, told_rows(found, subject), METRICS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        tta,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="test-time-augmentation",
        prepare=prepare,
        may_change=("resources",),
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
