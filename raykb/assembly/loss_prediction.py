"""Losses of a frozen network on hard inputs: how they are tabled, and what reads the tables.

    images ─▶ pieces, each made once by a worker ─▶ tables ─▶ training of a predictor ─▶ choices

Departures: the official code keeps a fifth of the training images from the predictor and chooses by
it. Here ``judged_on: valid`` does, and keeps it from the target network, too, which would lose
nothing on what it has learnt. The box of grey lies on the thumbnail.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from raykb.assembly.as_they_are import State, put_weights, read_weights
from raykb.assembly.builder import (
    Config,
    Data,
    Methods,
    Models,
    network_of,
    rehearse,
    rehearse_all,
)
from raykb.assembly.supervised import Supervised
from raykb.augment.choices import CLEAN, Choices, Conditions
from raykb.augment.hard_inputs import HARDENINGS
from raykb.augment.loss_prediction import NAMES
from raykb.augment.loss_tables import Arrays, Target, losses_piece, views_piece
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, build
from raykb.data.corruptions import CORRUPTIONS, EXTRA, SEVERITIES
from raykb.data.feed import InPlace
from raykb.data.images import ImageSet
from raykb.data.order import Shuffled
from raykb.data.source import Fields, Read, Source
from raykb.data.splits import stratified_shuffle_splits, stratified_subset
from raykb.data.views import VIEWS, ImageView, normalise
from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import keyed_uniform, stream_seed

OF_PREDICTORS = ("target", "hardening", "selection", "comparison")
VALID_SHARE = 0.2  # of the training images, where settings are chosen
_BOX = 1 / 3  # of the side: the 74 of 224 pixels that the official code seems to mean


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How a predictor is asked and judged; a section of the config.

    Args:
        thumbnail: side in pixels of what the predictor sees.
        threshold: share of the identity's probability below which a choice is the identity.
        corruptions: names of those of the test images; all of ImageNet-C by default.
        severities: of each of them, from 1 to 5.
        test_images: how many of these there are.
        judged_on: ``test``; or ``valid``, to choose settings by: then a fifth of the training
            images takes the place of the test images, and nothing learns from it.
        chunk: training images of one piece of the table.
    """

    thumbnail: int = 64
    threshold: float = 0.0
    corruptions: Sequence[str] = tuple(CORRUPTIONS)
    severities: Sequence[int] = tuple(SEVERITIES)
    test_images: int = 1000
    judged_on: Literal["test", "valid"] = "test"
    chunk: int = 500

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("thumbnail", "test_images", "chunk"), at_least(1))
        problems = misfits(self, threshold=at_least(0), **whole)
        for name, known in (("corruptions", (*CORRUPTIONS, *EXTRA)), ("severities", SEVERITIES)):
            given = getattr(self, name)
            if isinstance(given, str) or not given or set(given) - {*known}:
                allowed = ", ".join(map(str, known))
                problems.append(f"{name}: {given!r}, must be a list of some of {allowed}")
        refuse(problems)


@dataclass(frozen=True, eq=False)
class LossTable:
    """Rows of a table of losses as examples.

    Attributes:
        arrays: ``thumbnails`` (M, C, h, w) uint8 and ``losses`` (M, A) float32.
    """

    arrays: Arrays

    @property
    def ids(self) -> np.ndarray:
        """Places in the table, (M,) int64."""
        return np.arange(len(self))

    def __len__(self) -> int:
        return len(self.arrays["losses"])

    def read(self, rows: np.ndarray) -> Read:
        """Return thumbnails and losses of rows."""
        found = {name: array[rows] for name, array in self.arrays.items()}
        return Read(found, self.ids[rows], [""] * len(rows))

    def subset(self, rows: np.ndarray) -> "LossTable":
        """Return the table of some rows alone."""
        return LossTable({name: array[rows] for name, array in self.arrays.items()})


@dataclass(frozen=True)
class ThumbnailView:
    """Thumbnails with a box of a random grey, normalised.

    Attributes:
        form: its mean and deviation normalise.
    """

    form: ImageView

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return thumbnails (n, C, h, w) uint8 with a box, and losses (n, A)."""
        images = arrays["thumbnails"]
        draws = keyed_uniform(stream_seed(seed, "box", epoch), ids, 3).to(images.device)

        def within(size: int, draw: torch.Tensor) -> torch.Tensor:
            middle = (draw * size)[:, None]  # (n, 1)
            return (torch.arange(size, device=images.device) + 0.5 - middle).abs() < _BOX * size / 2

        high, wide = within(images.shape[2], draws[:, 0]), within(images.shape[3], draws[:, 1])
        box = (high[:, :, None] & wide[:, None, :])[:, None]  # (n, 1, h, w)
        grey = (draws[:, 2] * 256).to(torch.uint8)[:, None, None, None]
        return arrays | {"thumbnails": torch.where(box, grey, images)}

    def finish(self, arrays: Fields) -> Fields:
        """Return thumbnails (n, C, h, w) float32, and losses."""
        return self.plain(arrays)

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised thumbnails without a box, and losses."""
        values = arrays["thumbnails"].float() / 255
        return arrays | {"thumbnails": normalise(values, self.form.mean, self.form.std)}


def loss_prediction_data(
    *, config: Config, seed: int, table: Arrays, conditions: Conditions
) -> Data:
    """Return rows of a table of losses in shuffled epochs, and what choices are worth in the end.

    Args:
        config: the sections ``view``, ``recipe`` and ``selection``.
        seed: of order and boxes.
        table: of the hard training inputs.
        conditions: tables of the test images.
    """
    recipe, view = build(Recipe, config["recipe"]), build(VIEWS, config["view"])
    examples = LossTable(table)
    order = Shuffled(len(examples), recipe.batch_size, seed, keep_last=recipe.keep_last)
    selection = build(Selection, config["selection"])
    return Data(
        feed=InPlace(Source(examples, order, ThumbnailView(view), seed, "trainer")),
        samples=len(examples),
        classes=len(NAMES),
        channels=table["thumbnails"].shape[1],
        evaluations={"": Choices(conditions, view, selection.threshold, seed)},
    )


# ---------------------------------------------------------------------- rehearsals


def target_config(config: Config) -> dict[str, Any]:
    """Return the configuration of a target network's training: a classifier's, of the same data."""
    own = {name: part for name, part in config["target"].items() if name != "weights"}
    whole = {name: part for name, part in config.items() if name not in OF_PREDICTORS}
    return {**whole, **own}


def rehearse_target(
    config: Config, methods: Methods, data: Supervised, problems: Problems, workers: int
) -> State | None:
    """Build the target network's training without memory; return the weights that were named."""
    whole = target_config(config)
    sections = ("model", "optimizer", "schedule", "method", "recipe")
    places = {name: f"target.{name}" for name in sections}
    given = data.stand_in
    rehearse(whole, methods, given, data.shape, problems, places=places, workers=workers)
    if (place := config["target"]["weights"]) is None:
        return None
    with problems.at("target.weights"):
        state = read_weights(place)
        put_weights(network_of(whole, given), state)
        return state
    return None


def rehearse_predictors(
    config: Config,
    methods: Methods,
    models: Models,
    data: Supervised,
    problems: Problems,
) -> None:
    """Build every predictor's training without memory."""
    channels, side = data.shape[0], build(Selection, config["selection"]).thumbnail
    for entry in build(Comparison, config["comparison"]).entries(config).values():
        with problems.at("hardening", entry["hardening"]):
            samples = len(data.train) * build(HARDENINGS, entry["hardening"]).samples
    given = Data(samples=samples, classes=len(NAMES), channels=channels)
    rehearse_all(
        config,
        methods,
        given,
        (channels, side, side),
        problems,
        models=models,
        resources="predictor",
    )


# ---------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Piece:
    """A file of a table that a worker is to make.

    Attributes:
        name: of the file below the run directory.
        make: ``make(**arguments)`` returns what is in it.
        arguments: what ``make`` gets.
        key: stands for all that it is made of.
    """

    name: str
    make: Callable[..., bytes]
    arguments: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Tables:
    """Which pieces the tables of a run have, of what.

    Attributes:
        config: of the run.
        data: what the target network has to know of the data.
        state: weights of the target network that were read; None where it is trained.
        device: where it runs.
        threads: of torch, for each piece.
    """

    config: Config
    data: Data
    state: State | None
    device: str
    threads: int

    @property
    def selection(self) -> Selection:
        """How the predictor is asked and judged."""
        selection: Selection = build(Selection, self.config["selection"])
        return selection

    @property
    def severities(self) -> list[tuple[str, int]]:
        """What test images are corrupted by and how much: by nothing first."""
        asked = self.selection
        each = [(name, one) for name in asked.corruptions for one in asked.severities]
        return [(CLEAN, 0), *each]

    def pieces(self, images: int, comparison: Comparison) -> int:
        """Return the number of pieces of all tables at most, for so many training images."""
        chunks = -(-images // self.selection.chunk)
        learnt = len(comparison.trainings(self.config)) * chunks
        seen = len(self.severities) * (comparison.seeds if self.state is None else 1)
        return learnt + seen

    def parts(self, train: ImageSet, test: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Return the images that are learnt from, and those that are asked about.

        Raises:
            ValueError: there are too few of a class.
        """
        if self.selection.judged_on == "valid":
            split = stratified_shuffle_splits(train.labels, splits=1, test_fraction=VALID_SHARE)
            train, test = (train.subset(np.sort(rows)) for rows in split[0])
        count = min(self.selection.test_images, len(test))
        return train, test.subset(np.sort(stratified_subset(test.labels, count)))

    def target(self, state: State) -> Target:
        """Return a target network of these weights."""
        return Target(
            network=functools.partial(network_of, target_config(self.config), self.data),
            state=state,
            view=build(VIEWS, self.config["view"]),
            device=self.device,
            threads=self.threads,
        )

    def conditions(self, target: Target, test: ImageSet) -> dict[str, Piece]:
        """Return a piece for each corruption and severity of the test images, by their name."""
        seed = stream_seed(self.config["seed"], "test corruptions")
        made = {}
        for corruption, severity in self.severities:
            about = {"corruption": corruption, "severity": severity, "seed": seed}
            name = f"{corruption}/{severity}"
            made[name] = self._piece(f"seen/{name}", views_piece, target, test, about, {})
        return made

    def losses(self, target: Target, train: ImageSet, entry: Entry) -> dict[str, Piece]:
        """Return the pieces of the table that an entry of the comparison learns from.

        Entries that differ in what does not make the table have the same pieces.
        """
        hardening, made = entry.config["hardening"], {}
        table = hashlib.sha256(json.dumps([hardening, entry.seed]).encode()).hexdigest()[:12]
        for number, first in enumerate(range(0, len(train), self.selection.chunk)):
            part = train.subset(np.arange(first, min(first + self.selection.chunk, len(train))))
            given = {"hardening": build(HARDENINGS, hardening)}
            about, name = {"seed": entry.seed}, f"{table}/{number:05d}"
            made[name] = self._piece(
                f"losses/{name}", losses_piece, target, part, about, given, hardening
            )
        return made

    def _piece(
        self,
        name: str,
        make: Callable[..., bytes],
        target: Target,
        images: ImageSet,
        about: dict[str, Any],
        given: dict[str, Any],
        hardening: Any = None,
    ) -> Piece:
        about = about | {"side": self.selection.thumbnail}
        own = [target.key, self.config["data"], self.config["view"], about, hardening]
        digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode())
        digest.update(images.ids.tobytes())
        digest.update(images.images.tobytes())
        arguments = {"target": target, "images": images, **about, **given}
        place = f"tables/{target.key}/{name}.npz"
        return Piece(place, make, arguments, digest.hexdigest()[:16])
