"""Images whose labels nobody looks at until the end: what self-supervised learning reads."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raykb.assembly.as_they_are import State, put_weights
from raykb.assembly.builder import Config, Data, network_of
from raykb.assembly.supervised import Supervised
from raykb.config import Problems, build
from raykb.config.schema import Table
from raykb.data.box_views import BoxesView
from raykb.data.crop_views import (
    CropsView,
    LabelledCropView,
    MultiCropView,
    TilesView,
    TurnedView,
)
from raykb.data.crops import CROPS
from raykb.data.feed import InPlace
from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.mask_views import CorruptedView, MaskedView
from raykb.data.order import Shuffled
from raykb.data.sharded_images import ShardedImages
from raykb.data.source import Source, View
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import VIEWS
from raykb.engine.arguments import refuse
from raykb.engine.assemble import evaluated, evaluating
from raykb.engine.loop import Evaluated, Feed, Training, Worker
from raykb.engine.objective import LabelledBatch, Objective
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import stream_seed
from raykb.evaluate.backbone import (
    BackboneEvaluation,
    BackboneProtocol,
    JudgedBy,
    Store,
)
from raykb.evaluate.protocols import PROTOCOLS
from raykb.models import MODELS
from raykb.parts.backbone import require
from raykb.selfsup.batch import (
    BoxesBatch,
    CorruptedBatch,
    MaskedBatch,
    MultiCropBatch,
    TilesBatch,
    TurnedBatch,
    ViewsBatch,
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """By which protocols a backbone is judged; a section of the config.

    Args:
        at_end: names of those at the end of a training.
        on_the_way: names of those every ``recipe.evaluate_every`` steps; other workers wait for the
            first one meanwhile, so that long ones belong to the end.
        keep_features: whether the features of the end are kept in the run directory: 4 bytes a
            feature and image, which an evaluation that was stopped need not compute again.
    """

    at_end: Sequence[str] = ("linear_probe", "knn")
    on_the_way: Sequence[str] = ("linear_probe", "knn")
    keep_features: bool = True

    def __post_init__(self) -> None:
        problems = []
        for part in ("at_end", "on_the_way"):
            given = getattr(self, part)
            if isinstance(given, str) or set(given) - PROTOCOLS.keys():
                known = ", ".join(PROTOCOLS)
                problems.append(f"{part}: {given!r}, must be a list of some of {known}")
        refuse(problems)


def check_offers(config: Config, data: Data, problems: Problems) -> None:
    """Find protocols that need more than the backbone of a config offers."""
    asked = build(Asked, config["evaluate"])
    with torch.device("meta"):
        network = network_of(config, data)
    for name, protocol in protocols(config, [*asked.at_end, *asked.on_the_way]).items():
        with problems.at("evaluate", config["evaluate"]):
            require(network, protocol.needs, name)


def tasks_of(config: Config) -> dict[str, list[str]]:
    """Return by task the metrics that backbones are compared by at the end."""
    tasks: dict[str, list[str]] = {}
    for name, own in protocols(config, build(Asked, config["evaluate"]).at_end).items():
        tasks.setdefault(own.task, []).extend(f"test/{name}/{figure}" for figure in own.compared)
    return tasks


def protocols(config: Config, names: Sequence[str]) -> dict[str, BackboneProtocol]:
    """Return protocols by name, each as the section of its name has it."""
    return {name: build(PROTOCOLS[name], config[name]) for name in names}


SEEN: dict[type[Any], type[Any]] = {
    ViewsBatch: CropsView,
    MultiCropBatch: MultiCropView,
    BoxesBatch: BoxesView,
    MaskedBatch: MaskedView,
    CorruptedBatch: CorruptedView,
    TurnedBatch: TurnedView,
    TilesBatch: TilesView,
    LabelledBatch: LabelledCropView,
}
"""The view that makes each kind of batch."""


def view_of(objective: Objective, config: Config) -> View:
    """Return the view that makes the batches of an objective.

    What a view asks of it, as the number of small crops, is an attribute that both have.

    Args:
        objective: a self-supervised one.
        config: the sections ``crops`` and ``view``.

    Raises:
        ValueError: nothing makes such batches.
    """
    if objective.sees not in SEEN:
        raise ValueError(
            f"{type(objective).__name__} learns from a {objective.sees.__name__}, which nothing "
            f"makes; must be one of {', '.join(kind.__name__ for kind in SEEN)}"
        )
    make = SEEN[objective.sees]
    names = {part.name for part in dataclasses.fields(make)}
    given = {"crops": build(CROPS, config["crops"]), "form": build(VIEWS, config["view"])}
    own = {name: getattr(objective, name) for name in names if hasattr(objective, name)}
    view: View = make(**{name: value for name, value in given.items() if name in names} | own)
    return view


@dataclass(frozen=True)
class SelfSupervised:
    """Data that were opened; no image is decoded yet, but for one.

    Attributes:
        labelled: the data set that features are judged by; its training images are learnt from
            where no others are given.
        unlabelled: the settings of others.
        examples: the others; None where there are none.
    """

    labelled: Supervised
    unlabelled: UnlabelledImages
    examples: ShardedImages | None

    @classmethod
    def opened(cls, config: Config, problems: Problems) -> "SelfSupervised":
        """Open the data set, and the other images.

        Args:
            config: the sections ``data`` and ``unlabelled``.
            problems: take what is wrong.

        Raises:
            ConfigError: something cannot be opened; all that is wrong is named.
        """
        unlabelled = build(UnlabelledImages, config["unlabelled"], ratio=1)
        examples = None
        with problems.at("data", config["data"]):
            labelled = Supervised.opened(config["data"])
        if unlabelled.paths is not None:
            with problems.at("unlabelled", config["unlabelled"]):
                examples = unlabelled.examples(seed=0)
        problems.refuse()
        if examples is not None and examples.shape != labelled.shape:
            problems.add(
                f"unlabelled: images have the shape {examples.shape}, those of the data set "
                f"{labelled.shape}; set image_size and channels of both, to the same"
            )
        return cls(labelled, unlabelled, examples)

    @property
    def count(self) -> int:
        """Images that are learnt from."""
        return len(self.labelled.train if self.examples is None else self.examples)

    @property
    def stand_in(self) -> Data:
        """What a rehearsal has to know of it."""
        return Data(
            samples=self.count,
            classes=len(self.labelled.train.classes),
            channels=self.shape[0],
            supervised=False,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.labelled.shape

    @property
    def record(self) -> dict[str, Any]:
        """What must be the same where a run goes on; else a step would see other images."""
        digest = None if self.examples is None else self.examples.digest
        return {"schema": 1, "images": self.count, "digest": digest}

    def view(self, objective: Objective, config: Config) -> View:
        """Return the view that makes the batches of an objective, which has made one of them.

        Raises:
            ValueError: it cannot be made of these images.
        """
        view = view_of(objective, config)
        arrays = {"images": torch.zeros(1, *self.shape, dtype=torch.uint8)}
        if self.examples is None:
            arrays["labels"] = torch.zeros(1, dtype=torch.int64)
        view.finish(view.train(arrays, np.zeros(1, np.int64), 0, 0))
        return view

    def stream(
        self, config: Config, view: View, seed: int, transports: Table, **how: Any
    ) -> Feed | None:
        """Return the feed of the other images; None where there are none.

        Args:
            config: the sections ``stream`` and ``recipe``.
            view: makes the batches.
            seed: of the training.
            transports: the table that ``stream`` is a row of.
            how: what else a transport takes of the program.
        """
        if self.examples is None:
            return None
        own, batch = stream_seed(seed, "unlabelled"), build(Recipe, config["recipe"]).batch_size
        source = self.unlabelled.source(self.examples.seeded(own), view, batch, own)
        feed: Feed = build(transports, config["stream"], source=source, **how)
        return feed


def self_supervised_data(
    *,
    config: Config,
    seed: int,
    train: ImageSet,
    test: ImageSet,
    view: View,
    unlabelled: Feed | None,
    samples: int,
    store: Store | None = None,
) -> Data:
    """Return images without labels, and labelled ones to judge the features by.

    Args:
        config: the sections ``view``, ``recipe``, ``evaluate``, and those of protocols.
        seed: of order and views.
        train: images to learn from where there is no stream; their labels are for evaluations.
        test: images to evaluate on.
        view: makes the batches of the objective.
        unlabelled: the stream of other images, or None.
        samples: images that are learnt from.
        store: keeps the features that the last evaluation computes.
    """
    recipe, own = build(Recipe, config["recipe"]), stream_seed(seed, "unlabelled")
    order = Shuffled(len(train), recipe.batch_size, own, keep_last=recipe.keep_last)
    feed = unlabelled or InPlace(Source(train, order, view, own, "trainer"))
    plain = ClassifierView(build(VIEWS, config["view"]))
    by = JudgedBy(train, test, plain, len(test.classes), stream_seed(seed, "protocols"))
    asked = build(Asked, config["evaluate"])
    at_end = dataclasses.replace(by, store=store if asked.keep_features else None)
    return Data(
        feed=feed,
        samples=samples,
        classes=len(test.classes),
        channels=test.images.shape[1],
        evaluations={"": BackboneEvaluation(at_end, protocols(config, asked.at_end))},
        on_the_way={"": BackboneEvaluation(by, protocols(config, asked.on_the_way))},
        supervised=False,
    )


def untrained(
    worker: Worker,
    *,
    config: Config,
    seed: int,
    models: Mapping[str, Callable[..., torch.nn.Module]] = MODELS,
    weights: State | None = None,
    **arguments: Any,
) -> Training:
    """Return a training without a step: what weights are worth as they are.

    Args:
        worker: its place.
        config: the section ``model``, and those of :func:`self_supervised_data`.
        seed: of the trainings that it stands beside; the caller seeds the network's weights.
        models: the table that ``model`` is a row of.
        weights: see :func:`raykb.assembly.as_they_are.put_weights`; None for the initial ones.
        arguments: for :func:`self_supervised_data`.
    """
    given = self_supervised_data(config=config, seed=seed, **arguments)
    network = network_of(config, given, models).to(worker.device)
    if weights is not None:
        put_weights(network, weights)

    def evaluate(split: str) -> Evaluated:
        if worker.rank:
            return Evaluated({})
        with evaluating(network):
            return evaluated(given.evaluations, network, worker.device, split)

    return Training(
        step=lambda batch, number: {},
        update=lambda step: {},
        batches=lambda start: [],
        steps=0,
        parts={"model": network},
        evaluate=evaluate,
    )
