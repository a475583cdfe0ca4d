"""Search a 3-D network architecture in parallel trials, and say what it is worth when retrained.

Searches that differ in seed, sampler or learning rates run side by side on one task, each on two
halves of the training cases. What they find is trained anew, from scratch, beside random cells of
the same size, the published ones and a plain 3-D U-Net, over several seeds, and scored on cases
that no search saw. With no option it writes a task of phantoms and runs on it, in minutes on two
cores; data.root names the Medical Segmentation Decathlon.

  nas_search.py --set data.tasks=[4] --set replicas.seeds=4
  nas_search.py --set data.tasks=[9] --set model.genotype=runs/nas_search-…/genotype.json

The second retrains on a task what was found on another, and searches nothing.

Paper: Kim et al., "Scalable Neural Architecture Search for 3D Medical Image Segmentation", MICCAI
2019, arXiv:1906.05956.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(__file__, __doc__)  # --help, before the imports below take their seconds

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    stand_in,
    training,
)
from raykb.assembly.search import parts, rehearse_search, retraining_data, searching
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, build
from raykb.engine.loop import Training
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import generator
from raykb.later import Later
from raykb.models import SEGMENTERS
from raykb.nas.bilevel import SearchRecipe
from raykb.nas.contest import GOLDEN_LABEL, RANDOM, Beside, best_of, contest, mean_by_seed
from raykb.nas.found import found_network
from raykb.nas.genotype import Genotype, SearchSpace
from raykb.nas.samplers import SAMPLERS
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, Phase, WorkerResources
from raykb.runtime.session import Session
from raykb.runtime.studies import SearchError
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob
from raykb.segmentation import METHODS
from raykb.segmentation.plans import Configuration

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "nas" / "scnas_phantoms.yaml"
PREPARATION, SEARCH, RETRAINING = "preparation", "architecture searches", "retrainings"
CELLS = "scnas"  # the row whose networks are made of cells
NETWORKS = SEGMENTERS | {CELLS: found_network}
MEDICAL = ("monai", "nibabel")  # what is imported late, and would be missed after a training
PLANNED = ("strides", "kernel_sizes", "widths")
TRANSFERRED = "transferred"
VALID, TEST = "test/valid/dice", "test/dice"  # of a retraining
LENGTHS = Section(Recipe, given=("batch_size",), renamed=RECIPE.renamed)


SCHEMA = {name: SECTIONS[name] for name in ("optimizer", "schedule")} | {
    "data": Section(Tasks, given=("tolerance_mm", "test_cases")),
    "plan": PlanSettings,
    "folds": Section(Folds, given=("run",)),
    "patches": Patches,
    "space": SearchSpace,
    "sampler": Section(SAMPLERS, given=("space",), default="two_path"),
    "search": SearchRecipe,
    "model": Section(NETWORKS, given=("classes", "channels", *PLANNED), default=CELLS),
    "method": Section(METHODS, given=("task", "batch_dice"), default="dice_cross_entropy"),
    "supernet": LENGTHS,
    "retraining": Section(Recipe, given=("batch_size", "evaluate_every"), renamed=RECIPE.renamed),
    "replicas": Section(
        functools.partial(Comparison, over="sampler", rivals={}, on_failure="hole"),
        rows={"rivals": "over"},
    ),
    "beside": Beside,
    "comparison": Section(
        functools.partial(
            Comparison,
            over="model",
            seeds=3,
            rivals={"unet_3d": {"name": "unet_3d"}},
            on_failure="hole",
        ),
        given=("label",),
        rows={"rivals": "over"},
    ),
    "resources.preparation": WORKERS,
    "resources.supernet": WORKERS,
    "resources.retraining": WORKERS,
}

Ended = list[tuple[Entry, Result]]
"""Trainings that ended well."""


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: Tasks
    transferred: Genotype | None
    replicas: Comparison
    comparison: Comparison
    resources: dict[str, WorkerResources]
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the task, unless it is still to be written, and build all kinds of training.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems = Problems()
    data, plan = build(Tasks, config["data"]), build(PlanSettings, config["plan"])
    replicas = build(Comparison, config["replicas"])
    comparison = build(Comparison, config["comparison"])
    resources = {name: build(WorkerResources, part) for name, part in config["resources"].items()}
    transferred = None
    if missing := [name for name in MEDICAL if importlib.util.find_spec(name) is None]:
        problems.add(f"{' and '.join(missing)}: not installed; run: pip install 'raykb[medical]'")
    with problems.at("data", config["data"]):
        if (count := data.count()) != 1:
            raise ValueError(f"tasks: {count} of them, must be one, as [4] of Task04_Hippocampus")
    with problems.at("model", config["model"]):
        transferred = given_genotype(config["model"])
    check_comparisons(config, replicas, comparison, problems)
    problems.refuse("this run cannot be")
    with problems.at("plan", config["plan"]):
        rehearse_on(config, *stand_in(plan, channels=1, labels=2), problems)
    problems.refuse("this run cannot be")
    searches = 0 if transferred is not None else len(replicas.trainings(config))
    beside = build(Beside, config["beside"])
    genotypes = max(searches, 1) + beside.random + beside.golden
    phases = [
        Phase(PREPARATION, 1, resources["preparation"]),
        Phase(SEARCH, searches, resources["supernet"]),
        Phase(
            RETRAINING,
            (genotypes + len(comparison.rivals)) * comparison.seeds,
            resources["retraining"],
        ),
    ]
    return Ready(data, transferred, replicas, comparison, resources, phases)


def given_genotype(model: dict[str, Any]) -> Genotype | None:
    """Return the genotype that a section ``model`` names; None if one is to be searched.

    Raises:
        ValueError: the network is not made of cells, or the file has no genotype.
        OSError: the file cannot be read.
    """
    if model["name"] != CELLS:
        raise ValueError(f"name: {model['name']!r}, must be {CELLS!r}: others can be rivals")
    file = model["genotype"]
    return None if file is None else Genotype.from_json(Path(file).read_text("utf-8"))


def check_comparisons(
    config: dict[str, Any], replicas: Comparison, comparison: Comparison, problems: Problems
) -> None:
    """Find what the two comparisons may not be: labels have to name one network each."""
    if comparison.over != "model":
        problems.add(f"comparison.over: {comparison.over!r}, must be 'model'; see replicas.over")
    with problems.at("replicas", ["label", "rivals"]):
        own = {found_label(entry) for entry in replicas.trainings(config)}
        if any(label.startswith(f"{RANDOM}_") for label in own):
            raise ValueError(f"label: {RANDOM!r} is the run's own word; take another")
        own |= {GOLDEN_LABEL, RANDOM, TRANSFERRED}
        taken = [n for n in comparison.rivals if n in own or n.startswith(f"{RANDOM}_")]
        if taken:
            problems.add(f"comparison.rivals: {taken[0]!r} is the run's own word; take another")


def found_label(entry: Entry) -> str:
    """Return what the genotype of a search is called."""
    return f"{entry.label}_{entry.number}"


def rehearse_on(config: dict[str, Any], data: Data, own: Configuration, problems: Problems) -> None:
    """Build searches and retrainings without memory, for a plan."""
    whole = functools.partial(planned, own, NETWORKS)
    for entry in build(Comparison, config["replicas"]).entries(config).values():
        rehearse_search(whole(entry | {"recipe": entry["supernet"]}), METHODS, data, problems)
    rehearse_all(
        build(Comparison, config["comparison"]),
        config | {"recipe": config["retraining"]},
        METHODS,
        data,
        (data.channels, *own.patch_size),
        problems,
        models=NETWORKS,
        whole=whole,
        workers=config["resources"]["retraining"]["workers"],
    )


def nas_search(session: Session, ready: Ready) -> None:
    """Search, retrain and compare; what an earlier run of the directory finished is not redone."""
    if ready.transferred is None:
        session.warm(SEARCH, searching, ready.resources["supernet"])
    with session.reading("data"):
        task = prepared_task(session, ready)
    with session.reading("plan"):
        check(session, task)
    searched = search(session, ready, task) if ready.transferred is None else []
    with session.reading("beside"):
        genotypes = barrier(session, ready, searched)
    results = retrain(session, ready, task, genotypes)
    tell_results(session, ready, searched, genotypes, results)


def prepared_task(session: Session, ready: Ready) -> PreparedTask:
    """Return the task with its plan and prepared cases, which the run directory has then."""
    plan, each = build(PlanSettings, session.config["plan"]), ready.resources["preparation"]
    (task,), name = ready.data.open(session.files), "fingerprint.json"
    record = session.storage.read(name).decode() if session.storage.exists(name) else None
    shards = Path(ready.data.shards or session.files / "shards") / task.folder.name
    found: PreparedTask = session.machine.call(
        prepared, task, plan, shards, record, each.cpus, resources=each
    )
    session.storage.write(name, found.record().encode())
    session.write("plan.json", found.plan.to_json())
    return found


def check(session: Session, task: PreparedTask) -> None:
    """Say what is trained on; raise ConfigError, with all that is wrong, unless all can be."""
    problems, shape = Problems(), task.configuration.patch_size
    with problems.at("folds", ["splits"]):
        own = parts(task, build(Folds, session.config["folds"]))
    problems.refuse(f"{task.name} cannot be shared out")
    classes, channels = task.volumes.classes, task.volumes.channels
    given = Data(feed=None, samples=len(own.train), classes=len(classes), channels=channels)
    rehearse_on(session.config, given, task.configuration, problems)
    problems.refuse("searches, networks and the plan")
    session.say(
        f"{task.name}: {len(own.train)} cases to train on, {len(own.valid)} to choose by, "
        f"{len(own.test)} to test on; patches of {' x '.join(map(str, shape))} voxels, "
        f"{task.configuration.batch_size} a step"
    )


# ---------------------------------------------------------------------- trainings


def job(
    ready: Ready,
    task: PreparedTask,
    entry: Entry,
    recorded: dict[str, dict[str, Any]],
    make: Callable[..., Training],
    recipe: str,
    name: str,
    **arguments: Any,
) -> TrainJob:
    """Return the search or retraining of an entry; other files or another plan make another.

    ``recipe`` names the section of its recipe, and of its resources.
    """

    def whole(config: dict[str, Any]) -> dict[str, Any]:
        return planned(task.configuration, NETWORKS, config | {"recipe": config[recipe]})

    given = {"config": whole(entry.config), "methods": METHODS, "seed": entry.seed, "task": task}
    return TrainJob(
        f"{task.name}-{task.key}/{name}",
        make,
        given | arguments,
        entry.seed,
        ready.resources[recipe],
        params={"label": entry.label, "seed_number": entry.number},
        config=whole(recorded[entry.label]),
    )


def ended(
    session: Session, phase: str, jobs: Sequence[tuple[Entry, TrainJob]], comparison: Comparison
) -> Ended:
    """Run trainings; return those that ended well."""
    results = session.train(phase, [each for _, each in jobs], on_failure=comparison.on_failure)
    pairs = zip(jobs, results, strict=True)
    return [(entry, result) for (entry, _), result in pairs if result is not None]


def search(session: Session, ready: Ready, task: PreparedTask) -> Ended:
    """Run the searches side by side; return those that ended well, the best first.

    Raises:
        SearchError: there is none.
    """
    recorded = ready.replicas.entries(session.recorded)
    jobs = [
        (entry, job(ready, task, entry, recorded, searching, "supernet", f"search/{entry.name}"))
        for entry in ready.replicas.trainings(session.config, "architecture search")
    ]
    found = ended(session, SEARCH, jobs, ready.replicas)
    if not found:
        raise SearchError("searches: none of them ended well; each has its error in MLflow")
    return sorted(found, key=lambda pair: -pair[1].metrics.get("valid/dice", 0.0))


def found_by(searched: Ended) -> dict[str, Genotype]:
    """Return what searches found, by label."""
    return {
        found_label(entry): Genotype(**result.details()["genotype"]["cells"])
        for entry, result in searched
    }


def barrier(session: Session, ready: Ready, searched: Ended) -> dict[str, Genotype]:
    """Return the genotypes that are retrained, each once, and write them down.

    Raises:
        ValueError: there are not so many random ones.
    """
    config, own = session.config, found_by(searched)
    genotypes = contest(
        own if ready.transferred is None else {TRANSFERRED: ready.transferred},
        build(SearchSpace, config["space"]),
        beside=build(Beside, config["beside"]),
        generator=generator(config["seed"], "random genotypes"),
    )
    same = {
        label: [other for other, found in own.items() if found == genotype]
        for label, genotype in genotypes.items()
    }
    content = {
        label: {"hash": genotype.hash, "found_by": same[label], "cells": genotype.cells}
        for label, genotype in genotypes.items()
    }
    session.write("genotypes.json", json.dumps({"schema": 1, "genotypes": content}, indent=1))
    for label, genotype in genotypes.items():
        session.write(f"genotypes/{label}.json", genotype.to_json())
    return genotypes


def retrain(
    session: Session, ready: Ready, task: PreparedTask, genotypes: dict[str, Genotype]
) -> Ended:
    """Train rivals and cells from scratch under one budget; return those that ended well."""
    own, files = session.config["model"], session.files / "genotypes"
    cells = {label: own | {"genotype": str(files / f"{label}.json")} for label in genotypes}
    first, *others = cells
    rivals = ready.comparison.rivals | {label: cells[label] for label in others}
    comparison = dataclasses.replace(ready.comparison, rivals=rivals, label=first)
    recorded = comparison.entries(session.recorded | {"model": cells[first]})
    hashes = {label: f"-{genotype.hash}" for label, genotype in genotypes.items()}
    jobs = [
        (
            entry,
            job(
                ready,
                task,
                entry,
                recorded,
                training,
                "retraining",
                f"retrained/{entry.label}{hashes.get(entry.label, '')}/seed-{entry.number}",
                models=NETWORKS,
                data=retraining_data,
            ),
        )
        for entry in comparison.trainings(session.config | {"model": cells[first]}, "retraining")
    ]
    return ended(session, RETRAINING, jobs, comparison)


# ---------------------------------------------------------------------- results


def tell_results(
    session: Session,
    ready: Ready,
    searched: Ended,
    genotypes: dict[str, Genotype],
    results: Ended,
) -> None:
    """Write and print what networks are worth, and the best genotype, chosen before the test."""
    rows: list[dict[str, Any]] = [
        {"label": entry.label, "seed": entry.number, "steps": result.steps} | result.metrics
        for entry, result in results
    ]
    found = [label for label in genotypes if label in {TRANSFERRED, *found_by(searched)}]
    best = best_of(found, rows, VALID)
    session.write("genotype.json", genotypes[best].to_json())
    session.write("cells.png", report.png(report.cells(genotypes[best].cells, title=best)))
    if searched:
        told = report.searches(session.told(SEARCH, searched))
        session.write("searches.png", report.png(told))
    random = [label for label in genotypes if label.startswith(f"{RANDOM}_")]
    rows += mean_by_seed(random, rows, TEST)
    labels = [*ready.comparison.rivals, *([RANDOM] * (len(random) > 1)), *reversed(genotypes)]
    rivals: dict[str, dict[str, Any]] = {label: {} for label in labels if label != best}
    table = dataclasses.replace(ready.comparison, rivals=rivals, label=best)
    searches = [
        {"label": found_label(entry), "genotype": result.details()["genotype_hash"]}
        | {"steps": result.steps, "seconds": result.seconds}
        | result.metrics
        for entry, result in searched
    ]
    session.tell(table, rows, [TEST], about={"chosen_by": VALID, "searches": searches})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        nas_search,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="architecture-search",
        prepare=prepare,
        may_change=("resources",),
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
