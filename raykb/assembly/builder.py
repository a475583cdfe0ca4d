"""From a resolved config to a training: the one builder of the house.

    config ── model ─────▶ network ─┐
           ── method ────▶ objective (told of the network, steps, classes, unlabelled ids)
           ── optimizer, schedule, recipe ─┤
    data   ── feed, evaluations ───────────┴──▶ engine.assemble ──▶ Training

What is read and evaluated is a :class:`Data`; a kind of run has a function that makes one in the
worker, and hands over its table of methods. :data:`SECTIONS` is what a script's schema has of this.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raykb.comparison import Comparison
from raykb.config import Problems, Section, build
from raykb.data.datasets import DATASETS
from raykb.data.feed import Unread
from raykb.data.normalisation import normalisation
from raykb.data.views import VIEWS
from raykb.engine.assemble import assemble
from raykb.engine.loop import Evaluation, Feed, Training, Worker
from raykb.engine.objective import Objective, Task
from raykb.engine.optim import OPTIMIZERS, SCHEDULES
from raykb.engine.recipe import RENAMED, Recipe
from raykb.engine.seeding import apart, stream_seed
from raykb.models import MODELS
from raykb.parts.backbone import freeze_classifier

Config = Mapping[str, Any]
Methods = Mapping[str, Callable[..., Objective]]
Models = Mapping[str, Callable[..., nn.Module]]
META = Worker(device=torch.device("meta"))
RECIPE = Section(Recipe, renamed=RENAMED)
SHARED = ("data", "labels", "outside", "resources", "scenes", "tracking", "unlabelled")
"""Sections that are read once for all trainings of a run, if it has them."""
SECTIONS: dict[str, Any] = {
    "data": DATASETS,
    "view": Section(VIEWS, default="crop_flip", derived=normalisation),
    "model": Section(MODELS, given=("classes", "channels")),
    "optimizer": Section(OPTIMIZERS, given=("model",)),
    "schedule": Section(SCHEDULES, default="cosine"),
}


def compared(
    *, given: Sequence[str] = (), renamed: Mapping[str, str] | None = None, **defaults: Any
) -> Section:
    """Return the section of a schema that is a :class:`raykb.comparison.Comparison`.

    Args:
        given: arguments that the program gives.
        renamed: what arguments were called once.
        defaults: of this script, where they are not the class's own.
    """
    return Section(
        functools.partial(Comparison, **{"rivals": {}} | defaults),  # which a file can say
        given=("added", *given),
        rows={"rivals": "over"},
        renamed=renamed or {},
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a training reads, and what the builder has to know of it.

    Attributes:
        feed: of batches; None where there is only a rehearsal.
        samples: of one epoch.
        classes: their number.
        channels: of the images.
        evaluations: by name, as :func:`raykb.engine.assemble.assemble` takes them.
        on_the_way: those on the way, likewise; None for the same.
        ids: (U,) of all samples without labels, ascending; None where there are none.
        truths: (U,) their true labels, for figures alone; None where they are not known.
        supervised: whether the network's classifier is trained; if not, it stays as it was drawn.
    """

    feed: Feed | None = None
    samples: int
    classes: int
    channels: int
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    on_the_way: Mapping[str, Evaluation] | None = None
    ids: Tensor | None = None
    truths: Tensor | None = None
    supervised: bool = True


def training(
    worker: Worker,
    *,
    config: Config,
    methods: Methods,
    seed: int,
    data: Callable[..., Data],
    models: Models = MODELS,
    **arguments: Any,
) -> Training:
    """Return the training that a config describes.

    Args:
        worker: its place.
        config: the sections ``model``, ``method``, ``optimizer``, ``schedule`` and ``recipe``.
        methods: the table that ``method`` is a row of.
        seed: of what the method puts on the network; the caller seeds the network's weights.
        data: ``data(config=…, seed=…, **arguments)`` returns what is read.
        models: the table that ``model`` is a row of.
        arguments: for ``data``.
    """
    given = data(config=config, seed=seed, **arguments)
    network = network_of(config, given, models)
    objective = objective_of(config, methods, network, given, seed)
    return joined(worker, config, network, objective, given)


def network_of(config: Config, data: Data, models: Models = MODELS) -> nn.Module:
    """Return the network of the section ``model``."""
    network: nn.Module = build(
        models, config["model"], classes=data.classes, channels=data.channels
    )
    if not data.supervised:
        freeze_classifier(network)
    return network


def objective_of(
    config: Config, methods: Methods, network: nn.Module, data: Data, seed: int
) -> Objective:
    """Return the objective of the section ``method``.

    What it puts on the network is drawn from a stream of its own: all else is drawn as without it.
    """
    steps = build(Recipe, config["recipe"]).lengths(data.samples).steps
    task = Task(network, steps, data.classes, data.ids, data.truths)
    with apart(stream_seed(seed, "projection head")):  # as runs of before have it
        objective: Objective = build(methods, config["method"], task=task)
    return objective


def joined(
    worker: Worker, config: Config, network: nn.Module, objective: Objective, data: Data
) -> Training:
    """Return the training of a network by an objective as the other sections have it."""
    recipe = build(Recipe, config["recipe"])
    return assemble(
        worker,
        network=network,
        objective=objective,
        feed=data.feed or Unread(),
        optimizer=functools.partial(build, OPTIMIZERS, config["optimizer"]),
        schedule=build(SCHEDULES, config["schedule"]),
        recipe=recipe,
        lengths=recipe.lengths(data.samples),
        evaluations=data.evaluations,
        on_the_way=data.on_the_way,
    )


def rehearse(
    config: Config,
    methods: Methods,
    data: Data,
    shape: Sequence[int],
    problems: Problems,
    *,
    models: Models = MODELS,
    places: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Objective | None:
    """Build a training on the meta device, to hear before the start what is wrong with it.

    Args:
        config: as :func:`training` takes it.
        methods: as :func:`training` takes it.
        data: what will be read; nothing is read of it.
        shape: (C, H, W) of its images, or (C, Z, Y, X) of volumes, which have no section ``view``.
        problems: take what is wrong, by section.
        models: as :func:`training` takes them.
        places: the keys under which sections were written, where these are not their names.
        workers: that share the training.

    Returns:
        The objective, which can say what it needs; None if it cannot be made.
    """
    objective, images = None, None
    recipe: Mapping[str, Any] = {"steps": 1}  # for the method, should there be none

    def at(section: str) -> contextlib.AbstractContextManager[None]:
        return problems.at((places or {}).get(section, section), config.get(section, {}))

    with at("view"):
        images = _images(config, shape)
    with torch.device("meta"):
        network = MODELS["small_convnet"](data.classes, data.channels)  # likewise, for it
        with at("model"):
            network = network_of(config, data, models)
            if images is not None:
                _check_logits(network.eval()(images), data.classes, shape[1:])
        with at("optimizer"):
            build(OPTIMIZERS, config["optimizer"], model=nn.Linear(1, 1))
        with at("recipe"):
            built = build(Recipe, config["recipe"])
            recipe = config["recipe"]
            built.check_data_parallel(workers)
        with at("method"):
            objective = objective_of({**config, "recipe": recipe}, methods, network, data, seed=0)
        if not problems and objective is not None:
            with problems.at():
                joined(META, config, network, objective, data)
    return objective


def by_recipe(config: Config, phase: str) -> dict[str, Any]:
    """Return a config whose recipe is the section of a phase."""
    return {**config, "recipe": config[phase]}


def rehearse_phases(
    config: Config,
    methods: Methods,
    data: Data,
    shape: Sequence[int],
    problems: Problems,
    phases: Sequence[str],
) -> None:
    """Rehearse a training of each phase, whose recipe and resources are sections of its name."""
    for phase in phases:
        rehearse(
            by_recipe(config, phase),
            methods,
            data,
            shape,
            problems,
            places={"recipe": phase},
            workers=config["resources"][phase]["workers"],
        )


def rehearse_all(
    config: Config,
    methods: Methods,
    data: Data,
    shape: Sequence[int],
    problems: Problems,
    *,
    models: Models = MODELS,
    whole: Callable[[Config], Config] = dict,
    resources: str = "training",
) -> dict[str, Objective | None]:
    """Rehearse every entry of the section ``comparison``; return the objectives by label.

    Args:
        config: the run's.
        methods: as :func:`rehearse` takes them, and so are the others.
        data: what will be read.
        shape: of its images or volumes.
        problems: take what is wrong.
        models: the table that ``model`` is a row of.
        whole: adds to the config of an entry what the program decides, as a plan does.
        resources: name of the section in ``resources`` that says who shares a training.

    Raises:
        ConfigError: what differs is a section that all trainings share.
    """
    comparison = build(Comparison, config["comparison"])
    if comparison.rivals and (over := comparison.over).partition(".")[0] in SHARED:
        problems.add(
            f"comparison.over: {over!r} is read once for all trainings of a run, so that its "
            "rivals would be no others; start a run for each, and compare them by compare.py --by"
        )
        problems.refuse()
    made: dict[str, Objective | None] = {}
    with problems.at("comparison", ["rivals"]):
        for label, entry in comparison.entries(config).items():
            rival = {comparison.over: f"comparison.rivals.{label}"}
            made[label] = rehearse(
                whole(entry),
                methods,
                data,
                shape,
                problems,
                models=models,
                places=rival if label in comparison.rivals else None,
                workers=config["resources"][resources]["workers"],
            )
    return made


def _images(config: Config, shape: Sequence[int]) -> Tensor:
    """Return a batch of one without memory, as a network is given it."""
    if len(shape) > 3:
        return torch.zeros(1, *shape, device="meta")
    view = build(VIEWS, config["view"])
    images: Tensor = view.plain(torch.zeros(1, *shape, dtype=torch.uint8)).to("meta")
    return images


def _check_logits(logits: Tensor, classes: int, axes: Sequence[int]) -> None:
    """Raise ValueError unless there are logits of an image, or of each voxel of a volume."""
    wanted = (1, classes, *(axes if len(axes) > 2 else ()))
    if logits.shape != wanted:
        what = "a volume" if len(axes) > 2 else "an image"
        raise ValueError(f"gives {tuple(logits.shape)} for {what}, must be {wanted}")
