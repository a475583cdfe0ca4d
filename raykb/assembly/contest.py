"""From a resolved config to searches for an architecture, and what they found beside its rivals.

replicas ──▶ searches ──▶ genotypes ─┐
                 beside ──▶ random, golden ──▶ comparison over models ──▶ retrainings
                              rivals ┘
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raykb.assembly.builder import Config, Data, Methods, by_recipe, rehearse_all
from raykb.assembly.search import (
    parts,
    patches_of,
    read_of,
    rehearse_search,
    whole_volumes,
)
from raykb.assembly.segmentation import Folds, PreparedTask, planned
from raykb.assembly.segmenters import CELLS, NETWORKS
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, build
from raykb.engine.foreign import read_text
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import generator, stream_seed
from raykb.nas.contest import (
    RANDOM,
    TRANSFERRED,
    Beside,
    Contest,
    Row,
    contest,
    is_taken,
    mean_by_seed,
)
from raykb.nas.genotype import Genotype, SearchSpace
from raykb.nas.halving import Halving
from raykb.segmentation.plans import Configuration

SEARCHED, RETRAINED = "architecture search", "retraining"  # streams of seeds


def found_label(entry: Entry) -> str:
    """Return what the genotype of a search is called."""
    return f"{entry.label}_{entry.number}"


def in_phase(task: PreparedTask, recipe: str, config: Config) -> dict[str, Any]:
    """Return a config with what the plan decides in it, and the recipe of a section ``recipe``."""
    return planned(task.configuration, NETWORKS, by_recipe(config, recipe))


@dataclass(frozen=True)
class ArchitectureSearch:
    """The searches of a run, and who is retrained beside what they find.

    Attributes:
        replicas: the searches.
        comparison: how all are retrained, and rivals that are not made of cells.
        beside: which cells are retrained beside those that were found.
        halving: how retrainings are halved.
        transferred: a genotype that was found elsewhere, for which nothing is searched.
    """

    replicas: Comparison
    comparison: Comparison
    beside: Beside
    halving: Halving
    transferred: Genotype | None

    @classmethod
    def opened(cls, config: Config, problems: Problems) -> "ArchitectureSearch":
        """Return those of a config; ``problems`` take what is wrong.

        Raises:
            ValueError: a section cannot be built.
        """
        replicas = build(Comparison, config["replicas"])
        comparison = build(Comparison, config["comparison"])
        transferred = None
        with problems.at("model", config["model"]):
            transferred = given_genotype(config["model"])
        if comparison.over != "model":
            problems.add(
                f"comparison.over: {comparison.over!r}, must be 'model'; see replicas.over"
            )
        beside, halving = build(Beside, config["beside"]), build(Halving, config["halving"])
        found = cls(replicas, comparison, beside, halving, transferred)
        with problems.at("replicas", ["label", "rivals"]):
            found._check_labels(config, problems)
        return found

    def _check_labels(self, config: Config, problems: Problems) -> None:
        """Find labels that would name two networks."""
        own = {found_label(entry) for entry in self.replicas.trainings(config)}
        if any(map(is_taken, own)):
            raise ValueError(f"label: {RANDOM!r} is the run's own word; take another")
        for label in self.comparison.rivals:
            if label in own or is_taken(label):
                problems.add(f"comparison.rivals: {label!r} is the run's own word; take another")

    def searches(self, config: Config) -> list[Entry]:
        """Return the searches; none where a genotype is given."""
        return self.replicas.trainings(config, SEARCHED) if self.transferred is None else []

    def retrainings(self, config: Config) -> int:
        """Return how many there are at most: equal genotypes are retrained once."""
        genotypes = max(1, len(self.searches(config))) + self.beside.random + self.beside.golden
        return (genotypes + len(self.comparison.rivals)) * self.comparison.seeds

    def rungs(self, config: Config, task: PreparedTask) -> list[int]:
        """Return the steps after which retrainings are halved.

        Raises:
            ValueError: they are too short for it.
        """
        recipe = build(Recipe, in_phase(task, "retraining", config)["recipe"])
        train = parts(task, build(Folds, config["folds"])).train
        return self.halving.budgets(recipe.lengths(len(train)).steps)

    def rehearse(
        self, config: Config, methods: Methods, data: Data, own: Configuration, problems: Problems
    ) -> None:
        """Build all searches, and all that is retrained, on the meta device.

        Args:
            config: the run's; its sections ``supernet`` and ``retraining`` are recipes.
            methods: as :func:`raykb.assembly.search.searching` takes them.
            data: what will be read; nothing is read of it.
            own: what the plan has of the task.
            problems: take what is wrong.
        """
        whole = functools.partial(planned, own, NETWORKS)
        for entry in self.replicas.entries(config).values():
            rehearse_search(whole(by_recipe(entry, "supernet")), methods, data, problems)
        rehearse_all(
            by_recipe(config, "retraining"),
            methods,
            data,
            (data.channels, *own.patch_size),
            problems,
            models=NETWORKS,
            whole=whole,
            resources="retraining",
        )

    def entrants(self, config: Config, found: Mapping[str, Genotype]) -> Contest:
        """Return the genotypes that are retrained.

        Args:
            config: the run's.
            found: what searches found, by label, the best first.

        Raises:
            ValueError: there are not so many random ones.
        """
        return contest(
            found if self.transferred is None else {TRANSFERRED: self.transferred},
            build(SearchSpace, config["space"]),
            beside=self.beside,
            generator=generator(config["seed"], "random genotypes"),
        )

    def retrained(
        self, config: Config, recorded: Config, files: Mapping[str, Path]
    ) -> tuple[Comparison, list[Entry], dict[str, dict[str, Any]]]:
        """Return the comparison of all that is retrained, its trainings, and what is told of each.

        Args:
            config: the run's; all networks of cells are its ``model`` but for the genotype.
            recorded: the one that the run began with.
            files: of the genotypes, by label; the first is the comparison's subject.
        """
        cells = {label: {**config["model"], "genotype": str(file)} for label, file in files.items()}
        subject, *others = cells
        rivals = self.comparison.rivals | {label: cells[label] for label in others}
        comparison, model = replace(self.comparison, rivals=rivals, label=subject), cells[subject]
        entries = comparison.trainings({**config, "model": model}, RETRAINED)
        return comparison, entries, comparison.entries({**recorded, "model": model})

    def told(
        self,
        entrants: Contest,
        rows: Sequence[Row],
        metrics: Sequence[str],
        *,
        best: str,
        stopped: Collection[str],
    ) -> tuple[Comparison, list[Row]]:
        """Return what the table compares, and its rows: random genotypes have their mean, too.

        Args:
            entrants: the genotypes.
            rows: of the trainings that came to the end.
            metrics: that are compared.
            best: label of the genotype that others are compared with.
            stopped: labels of those that did not come to the end.
        """
        means = mean_by_seed(entrants.random, rows, metrics)
        cells = [label for label in reversed([*entrants.genotypes]) if label not in stopped]
        labels = [*self.comparison.rivals, *([RANDOM] if means else []), *cells]
        rivals: dict[str, dict[str, Any]] = {label: {} for label in labels if label != best}
        return replace(self.comparison, rivals=rivals, label=best), [*rows, *means]


def given_genotype(model: Mapping[str, Any]) -> Genotype | None:
    """Return the genotype that a section ``model`` names; None if one is to be searched.

    Raises:
        ValueError: the network is not made of cells, or the file has no genotype.
        OSError: the file cannot be read.
    """
    if model["name"] != CELLS:
        raise ValueError(f"name: {model['name']!r}, must be {CELLS!r}: others can be rivals")
    file = model["genotype"]
    return None if file is None else Genotype.from_json(read_text(Path(file)))


def retraining_data(
    *, config: Config, seed: int, task: PreparedTask, tolerance_mm: float | None = None
) -> Data:
    """Return patches of the cases ``train``; and to evaluate ``test``, and ``valid`` by that name.

    Args:
        config: the sections ``recipe``, ``folds`` and ``patches``.
        seed: of order and patches.
        task: whose cases they are.
        tolerance_mm: of the surface Dice of the cases ``test``; None for Dice alone.
    """
    train, valid, test = parts(task, build(Folds, config["folds"]))
    evaluations = {
        "": whole_volumes(test, task, config, tolerance_mm),
        "valid": whole_volumes(valid, task, config),
    }
    feed = patches_of(train, task, config, stream_seed(seed, "patches"))
    return replace(read_of(train, evaluations), feed=feed)
