"""From a resolved config to a search for an architecture on the cases of a task.

test      the first fold of all cases            scored at the end, seen by nobody before
valid     the first fold of the others           says which architecture is best
train     the rest; a search has weights learn from one half, and architectures from the other
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from raykb.assembly.builder import META, Config, Data, Methods, objective_of
from raykb.assembly.segmentation import Folds, Patches, PreparedTask
from raykb.config import Problems, build
from raykb.data.feed import InPlace
from raykb.data.nifti import Triple
from raykb.data.order import Endless
from raykb.data.source import Source
from raykb.data.volume_views import PatchView
from raykb.data.volumes import Volumes
from raykb.engine.loop import Evaluation, Training, Worker
from raykb.engine.optim import OPTIMIZERS, SCHEDULES
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import stream_seed
from raykb.evaluate.sliding_window import SlidingWindow
from raykb.later import Later
from raykb.nas.bilevel import SearchRecipe, halves
from raykb.nas.genotype import SearchSpace
from raykb.nas.samplers import SAMPLERS
from raykb.nas.scnas import network
from raykb.nas.search import SearchFeeds, search_training
from raykb.nas.supernet import Architecture, ChosenNetwork

evaluation = Later("raykb.evaluate.segmentation")
SIZES = ("width", "layers", "bridge")  # of the network; a supernet has them as what it finds has


class Parts(NamedTuple):
    """The cases of a task."""

    train: Volumes
    valid: Volumes
    test: Volumes


def parts(task: PreparedTask, settings: Folds) -> Parts:
    """Return the cases of a task, each in one part, and two or more to train on.

    Raises:
        ValueError: there are too few cases.
    """
    rest, test = task.split(settings, 0)
    train, valid = replace(task, volumes=rest).split(settings, 0)
    if len(train) < 2:
        raise ValueError(
            f"splits: {settings.splits} of {len(task.volumes)} cases, leaves {len(train)} to train "
            "on, must leave 2 or more; give more cases, or more splits"
        )
    return Parts(train, valid, test)


def searching(
    worker: Worker, *, config: Config, methods: Methods, seed: int, task: PreparedTask
) -> Training:
    """Return the search for an architecture that a config describes.

    What it evaluates, on the way and at the end, is of the cases ``valid``, and is called so.

    Args:
        worker: its place.
        config: the sections ``space``, ``sampler``, ``search``, ``model`` (its sizes), ``method``,
            ``optimizer``, ``schedule``, ``recipe``, ``folds`` and ``patches``.
        methods: the table that ``method`` is a row of.
        seed: of halves, patches and draws; the caller seeds the weights.
        task: whose cases they are.
    """
    train, valid, _ = parts(task, build(Folds, config["folds"]))
    ours, theirs = (_named(train, names) for names in halves(_names(train), seed))
    feeds = SearchFeeds(
        patches_of(ours, task, config, stream_seed(seed, "patches of weights")),
        patches_of(theirs, task, config, stream_seed(seed, "patches of architectures")),
    )
    data = read_of(ours, {"": whole_volumes(valid, task, config)})
    found = supernet_training(worker, config, methods, data, feeds, seed)
    return replace(found, evaluate=lambda split: found.evaluate("valid"))


def supernet_training(
    worker: Worker,
    config: Config,
    methods: Methods,
    data: Data,
    feeds: SearchFeeds | None,
    seed: int,
) -> Training:
    """Return the search that a config describes, on given data; without feeds it is rehearsed.

    An epoch of it lies between two evaluations, whatever cases there are.

    Raises:
        ValueError: nothing is evaluated on the way, or as :func:`raykb.nas.search.search_training`.
    """
    space, recipe = build(SearchSpace, config["space"]), build(Recipe, config["recipe"])
    sizes = {name: config["model"][name] for name in SIZES}
    supernet = ChosenNetwork(network(space, classes=data.classes, channels=data.channels, **sizes))
    lengths = recipe.lengths(data.samples)
    if not lengths.evaluate_every:
        raise ValueError(
            f"evaluate_every: {recipe.evaluate_every:g}, must be above 0: an epoch of the search "
            "lies between two evaluations"
        )
    return search_training(
        worker,
        network=supernet,
        objective=objective_of(config, methods, supernet, data, seed),
        architecture=Architecture(space),
        sampler=build(SAMPLERS, config["sampler"], space=space),
        space=space,
        feeds=feeds,
        optimizer=functools.partial(build, OPTIMIZERS, config["optimizer"]),
        schedule=build(SCHEDULES, config["schedule"]),
        recipe=recipe,
        lengths=lengths,
        search=build(SearchRecipe, config["search"]),
        steps_per_epoch=lengths.evaluate_every,
        evaluations=data.evaluations,
        seed=seed,
    )


def rehearse_search(config: Config, methods: Methods, data: Data, problems: Problems) -> None:
    """Build a search on the meta device, to hear before the start what is wrong with it.

    Args:
        config: as :func:`searching` takes it.
        methods: as :func:`searching` takes them.
        data: what will be read; nothing is read of it.
        problems: take what is wrong.
    """
    with problems.at("sampler", config["sampler"]):
        build(SAMPLERS, config["sampler"], space=build(SearchSpace, config["space"]))
    if not problems:
        with problems.at("supernet", config["recipe"]), torch.device("meta"):
            supernet_training(META, config, methods, data, None, seed=0)


def read_of(train: Volumes, evaluations: dict[str, Evaluation]) -> Data:
    """Return what is known of the cases that are trained on, without what reads them."""
    return Data(
        samples=len(train),
        classes=len(train.classes),
        channels=train.channels,
        evaluations=evaluations,
    )


def patches_of(volumes: Volumes, task: PreparedTask, config: Config, seed: int) -> InPlace:
    """Return patches of volumes without an end."""
    recipe, patches = build(Recipe, config["recipe"]), build(Patches, config["patches"])
    view = PatchView(volumes, _size(task), patches.foreground_share)
    return InPlace(Source(volumes, Endless(len(volumes), recipe.batch_size, seed), view, seed))


def whole_volumes(
    volumes: Volumes, task: PreparedTask, config: Config, tolerance_mm: float | None = None
) -> Evaluation:
    """Return what whole volumes are evaluated by; NSD at a tolerance, Dice alone without one."""
    patches = build(Patches, config["patches"])
    window = SlidingWindow(tile=_size(task), step=patches.step, batch_size=patches.tiles)
    made: Evaluation = evaluation.Segmentation(volumes.cases, volumes.classes, window, tolerance_mm)
    return made


def _size(task: PreparedTask) -> Triple:
    z, y, x = task.configuration.patch_size
    return z, y, x


def _names(volumes: Volumes) -> list[str]:
    return [case.name for case in volumes.cases]


def _named(volumes: Volumes, names: Sequence[str]) -> Volumes:
    """Return the cases of these names."""
    rows = {name: row for row, name in enumerate(_names(volumes))}
    return volumes.subset(np.array([rows[name] for name in names]))
