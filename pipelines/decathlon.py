"""Train one method, unchanged, on the ten tasks of the Medical Segmentation Decathlon.

What a task needs its fingerprint says: nnU-Net's rules plan spacing, normalisation, patches and the
network, and no task is known by its name. Methods are compared over all tasks and folds, and ranked
as the challenge ranks them; then each segments the test cases with all of its trainings. With no
option it writes a small Decathlon of phantoms and runs on it, in less than ten minutes on two
cores; data.root names the real one.

  decathlon.py --set 'data={tasks: [4, 9]}' --set comparison.seeds=3
  decathlon.py --methods planned_unet,runs/nas_search-…/genotype.json
  decathlon.py --config pipelines/configs/segmentation/decathlon_msd.yaml

Papers: Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 13 (2022);
Isensee et al., "nnU-Net", Nature Methods 18 (2021).
"""

import sys
from pathlib import Path

OPTIONS = {
    "methods": (
        "A,B",
        "compare these networks and no others: labels of the configuration, names of networks, or "
        "files of genotypes; the last one is the run's own model",
    )
}

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(
        __file__, __doc__, options=OPTIONS
    )  # --help, before the imports below take their seconds

import functools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from raykb.assembly import (
    NETWORKS,
    PLANNED,
    RECIPE,
    SECTIONS,
    Data,
    Folds,
    Patches,
    PlanSettings,
    Predictions,
    PreparedTask,
    Tasks,
    check_packages,
    compared,
    methods_named,
    planned,
    predicted,
    prediction_key,
    prepared,
    rehearse_all,
    segmentation_data,
    stand_in,
    training,
    unfit,
)
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, build
from raykb.data.decathlon import TOLERANCES_MM, Case, DecathlonTask
from raykb.data.volume_augmentations import PATCH_AUGMENTATIONS
from raykb.engine.recipe import Recipe
from raykb.evaluate.components import Kept, chosen
from raykb.later import Later
from raykb.runtime.file_jobs import FileJob, make_files
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, Phase, WorkerResources, workers_of
from raykb.runtime.session import Session
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob
from raykb.segmentation import METHODS
from raykb.segmentation.plans import Configuration

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "segmentation" / "decathlon_phantoms.yaml"
PREPARATION, TRAINING, PREDICTION = "preparation", "trainings", "predictions"
MISSING = "predictions_missing.txt"
SCORES = ("dice", "nsd")


SCHEMA = {name: SECTIONS[name] for name in ("optimizer", "schedule")} | {
    "data": Tasks,
    "plan": PlanSettings,
    "folds": Folds,
    "patches": Patches,
    "augmentation": Section(PATCH_AUGMENTATIONS, given=("size", "spacing_mm"), default="none"),
    "model": Section(NETWORKS, given=("classes", "channels", *PLANNED), default="planned_unet"),
    "method": Section(METHODS, given=("task", "batch_dice"), default="dice_cross_entropy"),
    "recipe": Section(Recipe, given=("batch_size",), renamed=RECIPE.renamed),
    "comparison": compared(over="model", on_failure="hole"),
    "predictions": Predictions,
    "resources.preparation": WORKERS,
    "resources.training": WORKERS,
    "resources.prediction": WORKERS,
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: Tasks
    plan: PlanSettings
    folds: Folds
    comparison: Comparison
    predictions: Predictions
    resources: dict[str, WorkerResources]
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the tasks, unless they are still to be written, and build networks without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems = Problems()
    data, folds = build(Tasks, config["data"]), build(Folds, config["folds"])
    plan, comparison = build(PlanSettings, config["plan"]), build(Comparison, config["comparison"])
    resources = workers_of(config)
    check_packages(problems)
    predictions, sizes = build(Predictions, config["predictions"]), list[tuple[int, int]]()
    with problems.at("data", config["data"]):
        sizes = data.sizes()
    with problems.at("plan", config["plan"]):
        rehearse_on(config, *stand_in(plan, channels=1, labels=2), problems)
    problems.refuse()
    units = len(sizes) * len(folds.numbers) * len(comparison.trainings(config))
    files = sum(
        test * predictions.test + folds.held_out(labelled) * predictions.validation
        for labelled, test in sizes
    )
    phases = [
        Phase(PREPARATION, len(sizes), resources["preparation"]),
        Phase(TRAINING, units, resources["training"]),
    ]
    if files:
        each = resources["prediction"]
        phases.append(Phase(PREDICTION, files * len(comparison.entries(config)), each))
    return Ready(data, plan, folds, comparison, predictions, resources, phases)


def rehearse_on(config: dict[str, Any], data: Data, own: Configuration, problems: Problems) -> None:
    """Build every method without memory, for a plan."""
    rehearse_all(
        config,
        METHODS,
        data,
        (data.channels, *own.patch_size),
        problems,
        models=NETWORKS,
        whole=functools.partial(planned, own, NETWORKS),
    )


def decathlon(session: Session, ready: Ready) -> None:
    """Run all trainings; what an earlier run of the directory finished is not done again."""
    session.warm(TRAINING, training, ready.resources["training"])
    with session.reading("data"):
        tasks = prepare_tasks(session, ready)
    with session.reading("plan"):
        check(session, ready, tasks)
    jobs = [
        (task, fold, entry, job(session, ready, task, fold, entry))
        for task in tasks
        for fold in ready.folds.numbers
        for entry in ready.comparison.trainings(session.config)
    ]
    results = session.train(
        TRAINING, [each for *_, each in jobs], on_failure=ready.comparison.on_failure
    )
    units = [
        Unit(task, fold, entry, each.name, result, {} if result is None else result.details())
        for (task, fold, entry, each), result in zip(jobs, results, strict=True)
    ]
    tell_results(session, ready, tasks, units)
    predict(session, ready, units)


def prepare_tasks(session: Session, ready: Ready) -> list[PreparedTask]:
    """Return the tasks with plans and prepared cases; both are in the run directory afterwards.

    Raises:
        ConfigError: all that is wrong with any case of any task is told.
    """
    tasks, found, problems = ready.data.open(session.files), list[PreparedTask](), Problems()

    def tried(task: DecathlonTask) -> PreparedTask | Exception:
        try:
            return prepare_task(session, ready, task)
        except (ValueError, OSError) as error:
            return error

    with ThreadPoolExecutor(session.parallel[PREPARATION]) as pool:
        for task, each in zip(tasks, pool.map(tried, tasks), strict=True):
            with problems.at(task.folder.name):
                if isinstance(each, Exception):
                    raise each
                found.append(each)
    problems.refuse("tasks")
    plans = {
        task.name: {"hash": task.plan.hash} | json.loads(task.plan.to_json()) for task in found
    }
    session.write("plans.json", json.dumps(plans, indent=1))
    return found


def prepare_task(session: Session, ready: Ready, task: DecathlonTask) -> PreparedTask:
    """Return a task with its plan and prepared cases, made by a worker."""
    name, each = f"fingerprints/{task.folder.name}.json", ready.resources["preparation"]
    shards = ready.data.shards_of(task, session.files)
    found = session.renewed(name, prepared, task, ready.plan, shards, each=each)
    own = found.configuration
    session.say(
        f"{found.name}: {len(found.volumes)} cases, patches of {shown(own.patch_size)} voxels, "
        f"{own.batch_size} a step, channels {shown(own.widths)}, plan {found.plan.hash}"
    )
    return found


def shown(numbers: Sequence[int]) -> str:
    """Return numbers as a text, ``24 x 24 x 16``."""
    return " x ".join(map(str, numbers))


def check(session: Session, ready: Ready, tasks: Sequence[PreparedTask]) -> None:
    """Raise ConfigError, with all that is wrong, unless each method can be trained on each task."""
    problems = Problems()
    for task in tasks:
        volumes = task.volumes
        given = Data(
            samples=len(volumes),
            classes=len(volumes.classes),
            channels=volumes.channels,
        )
        with problems.at("folds"):
            task.split(ready.folds, 0)
            for _, case, _ in ready.predictions.cases(task, ready.folds):
                problems.add(*unfit(task, case))
        rehearse_on(session.config, given, task.configuration, problems)
    problems.refuse("methods, plans and predictions")


def job(session: Session, ready: Ready, task: PreparedTask, fold: int, entry: Entry) -> TrainJob:
    """Return the training of a method on a fold of a task; other files or plans make another."""
    recorded = ready.comparison.entries(session.recorded)[entry.label]  # MLflow has them once
    whole = functools.partial(planned, task.configuration, NETWORKS)
    arguments = {
        "config": whole(entry.config),
        "methods": METHODS,
        "models": NETWORKS,
        "data": segmentation_data,
        "seed": entry.seed,
        "task": task,
        "fold": fold,
        "components": True,
        "tolerance_mm": TOLERANCES_MM.get(task.name, ready.data.tolerance_mm),
        "picture": entry.number == 0 and fold == ready.folds.numbers[0],
    }
    return TrainJob(
        f"{task.name}-{task.key}/{entry.label}/fold-{fold}-seed-{entry.number}",
        training,
        arguments,
        entry.seed,
        ready.resources["training"],
        params={
            "label": entry.label,
            "task": task.name,
            "fold": fold,
            "seed_number": entry.number,
            "plan_hash": task.plan.hash,
        },
        config=whole(recorded),
    )


class Unit(NamedTuple):
    """A training and what it is worth; a hole has no result."""

    task: PreparedTask
    fold: int
    entry: Entry
    name: str
    result: Result | None
    details: dict[str, Any]

    @property
    def method(self) -> tuple[str, str]:
        """Names of the task, and of what was trained on it."""
        return self.task.name, self.entry.label

    @property
    def scored(self) -> Any:
        """What the table has of it."""
        own = None if self.result is None else {name: self.details[name] for name in SCORES}
        return report.Scored(*self.method, self.fold, self.entry.number, own, self.name)


def tell_results(
    session: Session, ready: Ready, tasks: Sequence[PreparedTask], units: Sequence[Unit]
) -> None:
    """Write and print what the methods are worth on each task, and show slices of them."""
    table = report.TaskTable(
        [unit.scored for unit in units],
        tasks=[task.name for task in tasks],
        methods=list(ready.comparison.entries(session.config)),
        seed=session.config["seed"],
    )
    rows = [
        {"label": unit.entry.label, "task": unit.task.name, "fold": unit.fold}
        | {"seed": unit.entry.number}
        | unit.result.metrics
        for unit in units
        if unit.result is not None
    ]
    about = {"subject": ready.comparison.subject(session.config), "results": rows}
    session.write("results.json", json.dumps(table.summary() | about, indent=1))
    panels: dict[str, dict[str, Any]] = {}
    for unit in units:
        if "slice" in unit.details:
            panels.setdefault(unit.task.name, {})[unit.entry.label] = unit.details["slice"]
    for name, own in panels.items():
        session.write(f"{name}.png", report.png(report.slices(own, title=name)))
    session.show(table.text(), table.figures(), [f"test/{name}" for name in SCORES])


# ---------------------------------------------------------------------- predictions


def predict(session: Session, ready: Ready, units: Sequence[Unit]) -> None:
    """Write segmentations by all trainings of a method; those that cannot be made are holes."""
    kept = tell_components(session, units)
    jobs = prediction_jobs(session, ready, units, kept)
    missing = make_files(
        session,
        PREDICTION,
        jobs,
        each=ready.resources["prediction"],
        on_failure=ready.comparison.on_failure,
    )
    if jobs:
        session.say(
            f"{len(jobs) - len(missing)} of {len(jobs)} cases are written below predictions"
        )
    session.storage.remove(MISSING)  # an earlier run of the directory may have left one
    session.listed(MISSING, missing, "predictions are missing")


def tell_components(session: Session, units: Sequence[Unit]) -> dict[tuple[str, str], Kept]:
    """Write and return of what the largest pieces alone stay, by task and method."""
    cases: dict[tuple[str, str], list[Any]] = {}
    for unit in units:
        cases.setdefault(unit.method, []).extend(unit.details.get("components", {}).values())
    found = {method: chosen(own) for method, own in cases.items()}
    told: dict[str, dict[str, Any]] = {}
    for (task, label), choice in found.items():
        told.setdefault(task, {})[label] = {"cases": len(cases[task, label])} | choice.record()
        if any(choice.kept):
            session.say(f"{task}, {label}: the largest piece alone is kept of {choice.kept}")
    session.write("postprocessing.json", json.dumps({"schema": 1, "tasks": told}, indent=1))
    return {method: choice.kept for method, choice in found.items()}


def prediction_jobs(
    session: Session, ready: Ready, units: Sequence[Unit], kept: Mapping[tuple[str, str], Kept]
) -> list[FileJob]:
    """Return a file for each method and case, of all trainings that may segment it."""
    trained: dict[tuple[str, str], list[Unit]] = {}
    for unit in units:
        trained.setdefault(unit.method, []).append(unit)
    return [
        prediction_job(
            ready,
            case,
            [unit for unit in own if unit.fold in folds],
            f"predictions/{'/'.join(method)}/{place}{case.name}.nii.gz",
            kept[method],
        )
        for method, own in trained.items()
        for place, case, folds in ready.predictions.cases(own[0].task, ready.folds)
    ]


def prediction_job(
    ready: Ready, case: Case, units: Sequence[Unit], name: str, kept: Kept
) -> FileJob:
    """Return the segmentation of a case by trainings of one method; holes among these are left."""
    task, entry, each = units[0].task, units[0].entry, ready.resources["prediction"]
    results = [unit.result for unit in units if unit.result is not None]
    arguments = {
        "task": task,
        "case": case,
        "config": planned(task.configuration, NETWORKS, entry.config),
        "models": NETWORKS,
        "weights": [result.state for result in results],
        "kept": kept,
        "device": each.device,
        "threads": each.cpus,
    }
    key = prediction_key(case, [result.name for result in results], kept)
    return FileJob(name=name, make=predicted, arguments=arguments, key=key)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        decathlon,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="decathlon",
        prepare=prepare,
        may_change=("resources", "predictions"),
        options=OPTIONS,
        expand=methods_named,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
