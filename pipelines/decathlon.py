"""Train one method, unchanged, on the ten tasks of the Medical Segmentation Decathlon.

What a task needs its fingerprint says: nnU-Net's rules plan spacing, normalisation, patches and the
network, and no task is known by its name. Methods are compared over all tasks and folds, and ranked
as the challenge ranks them. With no option it writes a small Decathlon of phantoms and runs on it,
in less than ten minutes on two cores; data.root names the real one.

  decathlon.py --set 'data={tasks: [4, 9]}' --set comparison.seeds=3
  decathlon.py --config pipelines/configs/segmentation/decathlon_msd.yaml

Papers: Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 13 (2022);
Isensee et al., "nnU-Net", Nature Methods 18 (2021).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(__file__, __doc__)  # --help, before the imports below take their seconds

import functools
import importlib.util
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykb.assembly import (
    RECIPE,
    SECTIONS,
    Data,
    Folds,
    Patches,
    PlanSettings,
    PreparedTask,
    Tasks,
    planned,
    prepared,
    rehearse_all,
    segmentation_data,
    stand_in,
    training,
)
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, build
from raykb.data.decathlon import TOLERANCES_MM, DecathlonTask
from raykb.engine.recipe import Recipe
from raykb.later import Later
from raykb.models import SEGMENTERS
from raykb.nas.found import found_network
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, Phase, WorkerResources
from raykb.runtime.session import Session
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob
from raykb.segmentation import METHODS
from raykb.segmentation.plans import Configuration

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "segmentation" / "decathlon_phantoms.yaml"
PREPARATION, TRAINING = "preparation", "trainings"
NETWORKS = SEGMENTERS | {"scnas": found_network}
MEDICAL = ("monai", "nibabel")  # what is imported late, and would be missed after a training
PLANNED = ("strides", "kernel_sizes", "widths")


SCHEMA = {name: SECTIONS[name] for name in ("optimizer", "schedule")} | {
    "data": Tasks,
    "plan": PlanSettings,
    "folds": Folds,
    "patches": Patches,
    "model": Section(NETWORKS, given=("classes", "channels", *PLANNED), default="planned_unet"),
    "method": Section(METHODS, given=("task", "batch_dice"), default="dice_cross_entropy"),
    "recipe": Section(Recipe, given=("batch_size",), renamed=RECIPE.renamed),
    "comparison": Section(
        functools.partial(Comparison, over="model", rivals={}, on_failure="hole"),
        rows={"rivals": "over"},
    ),
    "resources.preparation": WORKERS,
    "resources.training": WORKERS,
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: Tasks
    plan: PlanSettings
    folds: Folds
    comparison: Comparison
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
    resources = {name: build(WorkerResources, part) for name, part in config["resources"].items()}
    if missing := [name for name in MEDICAL if importlib.util.find_spec(name) is None]:
        problems.add(f"{' and '.join(missing)}: not installed; run: pip install 'raykb[medical]'")
    count = 0
    with problems.at("data", config["data"]):
        count = data.count()
    with problems.at("plan", config["plan"]):
        rehearse_on(config, comparison, *stand_in(plan, channels=1, labels=2), problems)
    problems.refuse("this run cannot be")
    units = count * len(folds.numbers) * len(comparison.trainings(config))
    phases = [
        Phase(PREPARATION, count, resources["preparation"]),
        Phase(TRAINING, units, resources["training"]),
    ]
    return Ready(data, plan, folds, comparison, resources, phases)


def rehearse_on(
    config: dict[str, Any],
    comparison: Comparison,
    data: Data,
    own: Configuration,
    problems: Problems,
) -> None:
    """Build every method without memory, for a plan."""
    rehearse_all(
        comparison,
        config,
        METHODS,
        data,
        (data.channels, *own.patch_size),
        problems,
        models=NETWORKS,
        whole=functools.partial(planned, own, NETWORKS),
        workers=config["resources"]["training"]["workers"],
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
    pairs = zip(jobs, results, strict=True)
    tell_results(session, ready, tasks, [(*unit, result) for unit, result in pairs])


def prepare_tasks(session: Session, ready: Ready) -> list[PreparedTask]:
    """Return the tasks with plans and prepared cases; both are in the run directory afterwards."""
    tasks = ready.data.open(session.files)
    with ThreadPoolExecutor(session.parallel[PREPARATION]) as pool:
        found = list(pool.map(functools.partial(prepare_task, session, ready), tasks))
    plans = {
        task.name: {"hash": task.plan.hash} | json.loads(task.plan.to_json()) for task in found
    }
    session.write("plans.json", json.dumps(plans, indent=1))
    return found


def prepare_task(session: Session, ready: Ready, task: DecathlonTask) -> PreparedTask:
    """Return a task with its plan and prepared cases, made by a worker."""
    name, each = f"fingerprints/{task.folder.name}.json", ready.resources["preparation"]
    record = session.storage.read(name).decode() if session.storage.exists(name) else None
    shards = Path(ready.data.shards or session.files / "shards") / task.folder.name
    found: PreparedTask = session.machine.call(
        prepared, task, ready.plan, shards, record, each.cpus, resources=each
    )
    session.storage.write(name, found.record().encode())
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
            feed=None,
            samples=len(volumes),
            classes=len(volumes.classes),
            channels=volumes.channels,
        )
        with problems.at("folds"):
            task.split(ready.folds, 0)
        rehearse_on(session.config, ready.comparison, given, task.configuration, problems)
    problems.refuse("methods and plans")


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


Unit = tuple[PreparedTask, int, Entry, TrainJob, Result | None]


def tell_results(
    session: Session, ready: Ready, tasks: Sequence[PreparedTask], units: Sequence[Unit]
) -> None:
    """Write and print what the methods are worth on each task, and show slices of them."""
    scored, missing = [], dict[tuple[str, str], list[str]]()
    panels: dict[str, dict[str, Any]] = {}
    for task, fold, entry, unit, result in units:
        if result is None:
            missing.setdefault((task.name, entry.label), []).append(unit.name)
            continue
        details = result.details()
        if "slice" in details:
            panels.setdefault(task.name, {})[entry.label] = details.pop("slice")
        scored.append(report.Scored(task.name, entry.label, fold, entry.number, details))
    table = report.TaskTable(
        scored,
        tasks=[task.name for task in tasks],
        methods=list(ready.comparison.entries(session.config)),
        missing=missing,
        seed=session.config["seed"],
    )
    rows = [
        {"label": e.label, "task": t.name, "fold": fold, "seed": e.number} | result.metrics
        for t, fold, e, _, result in units
        if result is not None
    ]
    about = {"subject": ready.comparison.subject(session.config), "results": rows}
    session.write("results.json", json.dumps(table.summary() | about, indent=1))
    session.write("results.md", table.text() + "\n")
    for name, own in panels.items():
        session.write(f"{name}.png", report.png(report.slices(own, title=name)))
    session.parent.log(0, table.figures())
    print(f"\n{table.text()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        decathlon,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="decathlon",
        prepare=prepare,
        may_change=("resources",),
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
