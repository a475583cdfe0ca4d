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
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raykb.assembly import (
    CELLS,
    NETWORKS,
    PLANNED,
    RECIPE,
    SECTIONS,
    Folds,
    Patches,
    PlanSettings,
    PreparedTask,
    Tasks,
    check_packages,
    compared,
    prepared,
    stand_in,
    training,
)
from raykb.assembly.contest import (
    ArchitectureSearch,
    found_label,
    in_phase,
    retraining_data,
)
from raykb.assembly.search import parts, read_of, searching
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, build
from raykb.data.decathlon import TOLERANCES_MM
from raykb.engine.loop import Training
from raykb.engine.optim import SCHEDULES
from raykb.engine.recipe import Recipe
from raykb.later import Later
from raykb.nas.bilevel import SearchRecipe
from raykb.nas.contest import Beside, Contest, best_of
from raykb.nas.genotype import Genotype, SearchSpace
from raykb.nas.halving import Halving
from raykb.nas.samplers import SAMPLERS
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, Phase, WorkerResources, workers_of
from raykb.runtime.session import Session, rows_of
from raykb.runtime.studies import SearchError
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob
from raykb.segmentation import METHODS

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "nas" / "scnas_phantoms.yaml"
PREPARATION, SEARCH, RETRAINING = "preparation", "architecture searches", "retrainings"
VALID, TEST = "test/valid/dice", ("test/dice", "test/nsd")  # of a retraining


RECIPE_3D = functools.partial(Recipe, clip_norm=12.0)  # nnU-Net's, and so is its schedule
SCHEMA = {
    "optimizer": SECTIONS["optimizer"],
    "schedule": Section(SCHEDULES, default="poly"),
    "data": Section(Tasks, given=("test_cases",)),
    "plan": PlanSettings,
    "folds": Section(Folds, given=("run",)),
    "patches": Patches,
    "space": SearchSpace,
    "sampler": Section(SAMPLERS, given=("space",), default="two_path"),
    "search": SearchRecipe,
    "model": Section(NETWORKS, given=("classes", "channels", *PLANNED), default=CELLS),
    "method": Section(METHODS, given=("task", "batch_dice"), default="dice_cross_entropy"),
    "supernet": Section(RECIPE_3D, given=("batch_size",), renamed=RECIPE.renamed),
    "retraining": Section(
        RECIPE_3D, given=("batch_size", "evaluate_every"), renamed=RECIPE.renamed
    ),
    "replicas": compared(over="sampler", on_failure="hole"),
    "beside": Beside,
    "halving": Halving,
    "comparison": compared(
        given=("label",),
        over="model",
        seeds=3,
        rivals={"unet_3d": {"name": "unet_3d"}},
        on_failure="hole",
    ),
    "resources.preparation": WORKERS,
    "resources.supernet": WORKERS,
    "resources.retraining": WORKERS,
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: Tasks
    search: ArchitectureSearch
    resources: dict[str, WorkerResources]
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the task, unless it is still to be written, and build all kinds of training.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems, data = Problems(), build(Tasks, config["data"])
    search = ArchitectureSearch.opened(config, problems)
    resources = workers_of(config)
    check_packages(problems)
    with problems.at("data", config["data"]):
        if (count := data.count()) != 1:
            raise ValueError(f"tasks: {count} of them, must be one, as [4] of Task04_Hippocampus")
    problems.refuse()
    with problems.at("plan", config["plan"]):
        own = stand_in(build(PlanSettings, config["plan"]), channels=1, labels=2)
        search.rehearse(config, METHODS, *own, problems)
    problems.refuse()
    phases = [
        Phase(PREPARATION, 1, resources["preparation"]),
        Phase(SEARCH, len(search.searches(config)), resources["supernet"]),
        Phase(RETRAINING, search.retrainings(config), resources["retraining"]),
    ]
    return Ready(data, search, resources, phases)


def nas_search(session: Session, ready: Ready) -> None:
    """Search, retrain and compare; what an earlier run of the directory finished is not redone."""
    if ready.search.transferred is None:
        session.warm(SEARCH, searching, ready.resources["supernet"])
    with session.reading("data"):
        task = prepared_task(session, ready)
    with session.reading("plan"):
        check(session, ready, task)
    searched = searches(session, ready, task)
    with session.reading("beside"):
        entrants = barrier(session, ready, searched)
    results, stopped = retrainings(session, ready, task, entrants)
    tell_results(session, ready, searched, entrants, results, stopped)


def prepared_task(session: Session, ready: Ready) -> PreparedTask:
    """Return the task with its plan and prepared cases, which the run directory has then."""
    plan, each = build(PlanSettings, session.config["plan"]), ready.resources["preparation"]
    (task,) = ready.data.open(session.files)
    shards = ready.data.shards_of(task, session.files)
    found = session.renewed("fingerprint.json", prepared, task, plan, shards, each=each)
    session.write("plan.json", found.plan.to_json())
    return found


def check(session: Session, ready: Ready, task: PreparedTask) -> None:
    """Say what is trained on; raise ConfigError, with all that is wrong, unless all can be."""
    problems, shape = Problems(), task.configuration.patch_size
    with problems.at("folds", ["splits"]):
        own = parts(task, build(Folds, session.config["folds"]))
    problems.refuse(f"{task.name} cannot be shared out")
    with problems.at("halving", session.config["halving"]):
        ready.search.rungs(session.config, task)
    known = read_of(own.train, {})
    ready.search.rehearse(session.config, METHODS, known, task.configuration, problems)
    problems.refuse("searches, networks and the plan")
    session.say(
        f"{task.name}: {len(own.train)} cases to train on, {len(own.valid)} to choose by, "
        f"{len(own.test)} to test on; patches of {' x '.join(map(str, shape))} voxels, "
        f"{task.configuration.batch_size} a step"
    )


# ---------------------------------------------------------------------- trainings

Job = tuple[Entry, TrainJob]
Ended = list[tuple[Entry, Result]]
"""Trainings that ended well."""


def jobs(
    ready: Ready,
    task: PreparedTask,
    recipe: str,
    entries: Sequence[Entry],
    recorded: dict[str, dict[str, Any]],
    folder: Callable[[Entry], str],
    make: Callable[..., Training],
    **arguments: Any,
) -> list[Job]:
    """Return the searches or retrainings of entries; other files or another plan make others.

    ``recipe`` names the section of their recipe, and of their resources.
    """
    whole = functools.partial(in_phase, task, recipe)
    given = {"methods": METHODS, "task": task} | arguments
    return [
        (
            entry,
            TrainJob(
                f"{task.name}-{task.key}/{folder(entry)}",
                make,
                given | {"config": whole(entry.config), "seed": entry.seed},
                entry.seed,
                ready.resources[recipe],
                config=whole(recorded[entry.label]),
            ),
        )
        for entry in entries
    ]


def searches(session: Session, ready: Ready, task: PreparedTask) -> Ended:
    """Run the searches side by side; return those that ended well, the best first.

    Raises:
        SearchError: there is none, though there should be.
    """
    replicas, entries = ready.search.replicas, ready.search.searches(session.config)
    if not entries:
        return []
    recorded = replicas.entries(session.recorded)
    made = jobs(ready, task, "supernet", entries, recorded, lambda e: f"search/{e.name}", searching)
    found = session.compare(SEARCH, replicas, made)
    if not found:
        raise SearchError("searches: none of them ended well; each has its error in MLflow")
    return sorted(found, key=lambda pair: -pair[1].metrics.get("valid/dice", 0.0))


def barrier(session: Session, ready: Ready, searched: Ended) -> Contest:
    """Return the genotypes that are retrained, each once, and write them down."""
    found = {
        found_label(entry): Genotype(**result.details()["genotype"]["cells"])
        for entry, result in searched
    }
    entrants = ready.search.entrants(session.config, found)
    session.write("genotypes.json", json.dumps(entrants.record(), indent=1))
    for label, genotype in entrants.genotypes.items():
        session.write(f"genotypes/{label}.json", genotype.to_json())
    return entrants


def retrainings(
    session: Session, ready: Ready, task: PreparedTask, entrants: Contest
) -> tuple[Ended, Ended]:
    """Train rivals and cells from scratch under one budget.

    Returns:
        Those that came to the end of it, and those that were stopped at a rung.
    """
    files = {label: session.files / f"genotypes/{label}.json" for label in entrants.genotypes}
    comparison, entries, recorded = ready.search.retrained(session.config, session.recorded, files)
    made = jobs(
        ready,
        task,
        "retraining",
        entries,
        recorded,
        lambda entry: f"retrained/{entrants.named(entry.label)}/seed-{entry.number}",
        training,
        models=NETWORKS,
        data=retraining_data,
        tolerance_mm=TOLERANCES_MM.get(task.name, ready.data.tolerance_mm),
    )
    left, stopped = halved(session, ready, task, entrants, comparison, made)
    return session.compare(RETRAINING, comparison, left), stopped


def halved(
    session: Session,
    ready: Ready,
    task: PreparedTask,
    entrants: Contest,
    comparison: Comparison,
    left: list[Job],
) -> tuple[list[Job], Ended]:
    """Run the retrainings up to each rung; return those that go on, and what the others found."""
    stopped: Ended = []
    for until in ready.search.rungs(session.config, task):
        begun = session.compare(
            RETRAINING,
            comparison,
            [
                (e, dataclasses.replace(j, until=until))
                for e, j in left
                if e.label in entrants.halved
            ],
        )
        on = entrants.survivors(ready.search.halving, rows_of(begun), VALID)
        session.say(f"after step {until}: {', '.join(on)} go on")
        stopped += [pair for pair in begun if pair[0].label not in on]
        names = {entry.name for entry, _ in begun if entry.label in on}
        left = [(e, j) for e, j in left if e.label not in entrants.halved or e.name in names]
    return left, stopped


# ---------------------------------------------------------------------- results


def tell_results(
    session: Session,
    ready: Ready,
    searched: Ended,
    entrants: Contest,
    results: Ended,
    stopped: Ended,
) -> None:
    """Write and print what networks are worth, and the best genotype, chosen before the test."""
    rows = rows_of(results)
    best = best_of(entrants.challengers, rows, VALID)
    genotype = entrants.genotypes[best]
    session.write("genotype.json", genotype.to_json())
    session.write("cells.png", report.png(report.cells(genotype.cells, title=best)))
    if searched:
        session.write("searches.png", report.png(report.searches(session.told(SEARCH, searched))))
    halted = {entry.label for entry, _ in stopped}
    table, shown = ready.search.told(entrants, rows, TEST, best=best, stopped=halted)
    about = {"chosen_by": VALID, "stopped": rows_of(stopped)} | {
        "searches": [
            row
            | {"label": found_label(entry), "genotype": result.details()["genotype_hash"]}
            | {"seconds": result.seconds}
            for row, (entry, result) in zip(rows_of(searched), searched, strict=True)
        ]
    }
    session.tell(table, shown, TEST, about=about)


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
