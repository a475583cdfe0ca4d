"""Losses of a frozen network on hard inputs: what a predictor of losses reads."""

from dataclasses import dataclass

import numpy as np
import torch

from raykb.assembly.builder import Config, Data
from raykb.augment.choices import Choices, Conditions
from raykb.augment.loss_prediction import NAMES
from raykb.augment.loss_tables import Arrays
from raykb.config import build
from raykb.data.feed import InPlace
from raykb.data.order import Shuffled
from raykb.data.source import Fields, Read, Source
from raykb.data.views import VIEWS, ImageView
from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import keyed_uniform, stream_seed

_BOX = 1 / 3  # of the side: the 74 of 224 pixels that the official code seems to mean


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How a predictor is asked and judged; a section of the config.

    Args:
        thumbnail: side in pixels of what the predictor sees.
        threshold: share of the identity's probability below which a choice is the identity.
        severities: of the corruptions of the test images, from 1 to 5.
        test_images: how many of these there are.
        chunk: training images of one piece of the table.
    """

    thumbnail: int = 64
    threshold: float = 0.0
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    test_images: int = 1000
    chunk: int = 500

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("thumbnail", "test_images", "chunk"), at_least(1))
        problems = misfits(self, threshold=at_least(0), **whole)
        if not self.severities or set(self.severities) - {1, 2, 3, 4, 5}:
            problems.append(f"severities: {self.severities!r}, must be some of 1, 2, 3, 4, 5")
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
        return arrays | {"thumbnails": self.form.plain(arrays["thumbnails"])}


def predictor_stand_in(channels: int, samples: int) -> Data:
    """Return what a rehearsal has to know of a table of so many samples."""
    return Data(samples=samples, classes=len(NAMES), channels=channels)


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
