"""Search a 3-D network architecture in parallel trials, and say what it is worth when retrained.

Searches that differ in seed, sampler or learning rates run side by side on one task, each on two
halves of the training cases. What they find is trained anew, from scratch, beside random cells of
the same size, the published ones and a plain 3-D U-Net, over several seeds, and scored on cases
that no search saw. With no option it writes a task of phantoms and runs on it, in minutes on two
cores; data.root names the Medical Segmentation Decathlon.

  nas_search.py --set data.task=4 --set replicas.seeds=4
  nas_search.py --set data.task=9 --set model.genotype=runs/nas_search-…/genotype.json

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

import functools
import json
import statistics
from collections.abc import Sequence
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
    opened,
    planned,
    prepared,
    rehearse_all,
    stand_in,
    training,
)
from raykb.assembly.search import parts, rehearse_search, retraining_data, searching
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, build
from raykb.data.decathlon import DecathlonTask
from raykb.data.nifti import require_nibabel
from raykb.data.phantom_anatomy import ANATOMIES
from raykb.data.phantoms import write_phantoms
from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import generator, stream_seed
from raykb.later import Later
from raykb.models import SEGMENTERS
from raykb.nas.bilevel import SearchRecipe
from raykb.nas.contest import contest
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
PLANNED = ("strides", "kernel_sizes", "widths")
TRANSFERRED, RANDOM = "transferred", "random"
VALID, TEST = "test/valid/dice", "test/dice"  # of a retraining
LENGTHS = Section(Recipe, given=("batch_size",), renamed=RECIPE.renamed)


@dataclass(frozen=True, kw_only=True)
class SearchedTask:
    """The task that is searched and retrained on; a section of the config.

    Args:
        root: folder of tasks in the Decathlon's layout, which all nodes see; null has phantoms
            written into the run directory.
        task: its number, as 4 of Task04_Hippocampus.
        cases: of a task of phantoms.
        size: voxels of a phantom along an axis, about.
        shards: folder for prepared cases, which all nodes see; null for the run directory's.
    """

    root: str | None = None
    task: int = 1
    cases: int = 24
    size: int = 24
    shards: str | None = None

    def __post_init__(self) -> None:
        problems = misfits(self, cases=at_least(4), size=at_least(16))
        if self.root is None and self.task not in ANATOMIES:
            problems.append(f"task: {self.task}, must be in 1..10, as phantoms are")
        refuse(problems)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Which cells are retrained beside those that were found; a section of the config.

    Args:
        random: genotypes of the same size, drawn at random.
        golden: whether the published cells are among them.
    """

    random: int = 3
    golden: bool = True

    def __post_init__(self) -> None:
        refuse(misfits(self, random=at_least(0)))


SCHEMA = {name: SECTIONS[name] for name in ("optimizer", "schedule")} | {
    "data": SearchedTask,
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
        functools.partial(Comparison, over="sampler", on_failure="hole"), rows={"rivals": "over"}
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
        rows={"rivals": "over"},
    ),
    "resources.preparation": WORKERS,
    "resources.search": WORKERS,
    "resources.retraining": WORKERS,
}

Searched = list[tuple[Entry, Result]]
Models = dict[str, dict[str, Any]]
"""Sections ``model`` by label."""


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    task: DecathlonTask | None
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
    data, plan = build(SearchedTask, config["data"]), build(PlanSettings, config["plan"])
    replicas = build(Comparison, config["replicas"])
    comparison = build(Comparison, config["comparison"])
    resources = {name: build(WorkerResources, part) for name, part in config["resources"].items()}
    task, transferred = None, None
    with problems.at("data", config["data"]):
        task = None if data.root is None else opened(Path(data.root), [data.task])[0]
    with problems.at("model", config["model"]):
        transferred = given_genotype(config["model"])
    check_comparisons(config, replicas, comparison, problems)
    problems.refuse("this run cannot be")
    with problems.at("plan", config["plan"]):
        rehearse_on(config, *stand_in(plan, channels=1, labels=2), problems)
    problems.refuse("this run cannot be")
    searches = 0 if transferred else len(replicas.trainings(config))
    beside = build(Beside, config["beside"])
    genotypes = max(searches, 1) + beside.random + beside.golden
    phases = [
        Phase(PREPARATION, 1, resources["preparation"]),
        Phase(SEARCH, searches, resources["search"]),
        Phase(
            RETRAINING,
            (genotypes + len(comparison.rivals)) * comparison.seeds,
            resources["retraining"],
        ),
    ]
    return Ready(task, transferred, replicas, comparison, resources, phases)


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
    with problems.at("replicas", ["rivals"]):
        own = [found_label(entry) for entry in replicas.trainings(config)]
        taken = {*own, "golden", RANDOM, TRANSFERRED} & {*comparison.rivals}
        if taken:
            problems.add(f"comparison.rivals: {min(taken)!r} is the run's own word; take another")


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
        session.warm(SEARCH, searching, ready.resources["search"])
    with session.reading("data"):
        task = prepared_task(session, ready)
    with session.reading("plan"):
        check(session, task)
    searched = [] if ready.transferred else search(session, ready, task)
    with session.reading("beside"):
        genotypes = barrier(session, ready, searched)
    models = sections(session, ready, genotypes)
    results = retrain(session, ready, task, models, genotypes)
    tell_results(session, ready, searched, genotypes, models, results)


def prepared_task(session: Session, ready: Ready) -> PreparedTask:
    """Return the task with its plan and prepared cases; both are in the run directory afterwards."""
    data, plan = (
        build(SearchedTask, session.config["data"]),
        build(PlanSettings, session.config["plan"]),
    )
    task, each, name = ready.task, ready.resources["preparation"], "fingerprint.json"
    if task is None:
        require_nibabel()
        root = session.files / "phantoms"
        write_phantoms(root, tasks=[data.task], cases=data.cases, test_cases=0, size=data.size)
        (task,) = opened(root, [data.task])
    record = session.storage.read(name).decode() if session.storage.exists(name) else None
    shards = Path(data.shards or session.files / "shards") / task.folder.name
    found: PreparedTask = session.machine.call(
        prepared, task, plan, shards, record, each.cpus, resources=each
    )
    session.storage.write(name, found.record().encode())
    session.write("plan.json", found.plan.to_json())
    return found


def check(session: Session, task: PreparedTask) -> None:
    """Say what is trained on; raise ConfigError, with all that is wrong, unless all can be."""
    own = parts(task, build(Folds, session.config["folds"]))
    problems, shape = Problems(), task.configuration.patch_size
    classes, channels = task.volumes.classes, task.volumes.channels
    given = Data(feed=None, samples=len(own.train), classes=len(classes), channels=channels)
    rehearse_on(session.config, given, task.configuration, problems)
    problems.refuse("searches, networks and the plan")
    session.say(
        f"{task.name}: {len(own.train)} cases to train on, {len(own.valid)} to choose by, "
        f"{len(own.test)} to test on; patches of {' x '.join(map(str, shape))} voxels, "
        f"{task.configuration.batch_size} a step"
    )


# ---------------------------------------------------------------------- searches


def search(session: Session, ready: Ready, task: PreparedTask) -> Searched:
    """Run the searches side by side; return those that ended well, the best first.

    Raises:
        SearchError: there is none.
    """
    entries = ready.replicas.trainings(session.config, "architecture search")
    recorded = ready.replicas.entries(session.recorded)
    jobs = [
        TrainJob(
            f"search-{task.key}/{entry.name}",
            searching,
            {
                "config": search_config(entry.config, task),
                "methods": METHODS,
                "seed": entry.seed,
                "task": task,
            },
            entry.seed,
            ready.resources["search"],
            params={"label": entry.label, "seed_number": entry.number},
            config=search_config(recorded[entry.label], task),
        )
        for entry in entries
    ]
    results = session.train(SEARCH, jobs, on_failure=ready.replicas.on_failure)
    pairs = zip(entries, results, strict=True)
    found = [(entry, result) for entry, result in pairs if result is not None]
    if not found:
        raise SearchError("searches: none of them ended well; each has its error in MLflow")
    return sorted(found, key=lambda pair: -pair[1].metrics.get("valid/dice", 0.0))


def search_config(config: dict[str, Any], task: PreparedTask) -> dict[str, Any]:
    """Return the config of a search."""
    return planned(task.configuration, NETWORKS, config | {"recipe": config["supernet"]})


def found_by(searched: Searched) -> dict[str, Genotype]:
    """Return what searches found, by label."""
    return {
        found_label(entry): Genotype(**result.details()["genotype"]["cells"])
        for entry, result in searched
    }


def barrier(session: Session, ready: Ready, searched: Searched) -> dict[str, Genotype]:
    """Return the genotypes that are retrained, each once, and write them down.

    Raises:
        ValueError: there are not so many random ones.
    """
    config, beside = session.config, build(Beside, session.config["beside"])
    own = found_by(searched)
    genotypes = contest(
        {TRANSFERRED: ready.transferred} if ready.transferred else own,
        build(SearchSpace, config["space"]),
        random=beside.random,
        golden=beside.golden,
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


# ---------------------------------------------------------------------- retraining


def sections(session: Session, ready: Ready, genotypes: dict[str, Genotype]) -> Models:
    """Return what is retrained: rivals, then networks of cells, of the size that was searched."""
    files, own = session.files / "genotypes", session.config["model"]
    cells = {label: own | {"genotype": str(files / f"{label}.json")} for label in genotypes}
    return dict(ready.comparison.rivals) | dict(reversed(cells.items()))


def retrain(
    session: Session,
    ready: Ready,
    task: PreparedTask,
    models: Models,
    genotypes: dict[str, Genotype],
) -> list[tuple[str, int, Result]]:
    """Train all networks from scratch under one budget; return label, seed and result of each."""
    seeds = ready.comparison.seeds_of(session.config, "retraining")
    units = [(label, number, seed) for number, seed in enumerate(seeds) for label in models]
    jobs = [
        retraining(session, ready, task, label, number, seed, models[label], genotypes.get(label))
        for label, number, seed in units
    ]
    results = session.train(RETRAINING, jobs, on_failure=ready.comparison.on_failure)
    pairs = zip(units, results, strict=True)
    return [(label, number, result) for (label, number, _), result in pairs if result is not None]


def retraining(
    session: Session,
    ready: Ready,
    task: PreparedTask,
    label: str,
    number: int,
    seed: int,
    model: dict[str, Any],
    genotype: Genotype | None,
) -> TrainJob:
    """Return the training of a network; another genotype, plan or files make another."""

    def whole(config: dict[str, Any]) -> dict[str, Any]:
        changed = config | {"recipe": config["retraining"], "model": model}
        return planned(task.configuration, NETWORKS, changed)

    own = label if genotype is None else f"{label}-{genotype.hash}"
    arguments = {
        "config": whole(session.config),
        "methods": METHODS,
        "models": NETWORKS,
        "data": retraining_data,
        "seed": seed,
        "task": task,
    }
    params = {"label": label, "seed_number": number}
    return TrainJob(
        f"retrained-{task.key}/{own}/seed-{number}",
        training,
        arguments,
        seed,
        ready.resources["retraining"],
        params=params if genotype is None else params | {"genotype_hash": genotype.hash},
        config=whole(session.recorded),
    )


# ---------------------------------------------------------------------- results


def tell_results(
    session: Session,
    ready: Ready,
    searched: Searched,
    genotypes: dict[str, Genotype],
    models: Models,
    results: Sequence[tuple[str, int, Result]],
) -> None:
    """Write and print what networks are worth, and the best genotype, chosen before the test."""
    rows: list[dict[str, Any]] = [
        {"label": label, "seed": number, "steps": result.steps} | result.metrics
        for label, number, result in results
    ]
    found = [TRANSFERRED] if ready.transferred else [*found_by(searched)]
    best = chosen([label for label in genotypes if label in found], rows)
    session.write("genotype.json", genotypes[best].to_json())
    session.write("cells.png", report.png(report.cells(genotypes[best].cells, title=best)))
    random = [label for label in genotypes if label.startswith(f"{RANDOM}_")]
    rows += mean_rows(random, rows)
    labels = [label for label in models if label != best] + [RANDOM] * (len(random) > 1)
    table = Comparison(
        over="model",
        seeds=ready.comparison.seeds,
        rivals={label: {} for label in labels},
        label=best,
    )
    searches = [
        {
            "label": found_label(entry),
            "genotype": result.details()["genotype_hash"],
            "steps": result.steps,
            "seconds": result.seconds,
        }
        | result.metrics
        for entry, result in searched
    ]
    session.tell(table, rows, [TEST], about={"chosen_by": VALID, "searches": searches})


def chosen(labels: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Return the label whose retrainings do best on the cases to choose by; the first of equals."""

    def worth(label: str) -> float:
        own = [row.get(VALID, 0.0) for row in rows if row["label"] == label]
        return statistics.fmean(own) if own else -1.0

    return max(labels, key=worth)


def mean_rows(labels: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over random genotypes for each seed that all of them have a result of."""
    if len(labels) < 2:
        return []
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if row["label"] in labels and TEST in row:
            by_seed.setdefault(row["seed"], []).append(row[TEST])
    return [
        {"label": RANDOM, "seed": seed, TEST: statistics.fmean(values)}
        for seed, values in by_seed.items()
        if len(values) == len(labels)
    ]


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
