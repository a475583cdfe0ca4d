"""Labelled images in shuffled epochs: what supervised learning reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raykb.assembly.builder import Config, Data
from raykb.config import build
from raykb.data.datasets import open_records
from raykb.data.feed import InPlace
from raykb.data.image_views import Augmentation, ClassifierView
from raykb.data.images import ImageSet
from raykb.data.loading import load
from raykb.data.options import Options
from raykb.data.order import Shuffled
from raykb.data.records import Records
from raykb.data.source import Selected, Source
from raykb.data.views import VIEWS
from raykb.engine.recipe import Recipe
from raykb.evaluate.classification import Classification


@dataclass(frozen=True)
class Supervised:
    """A data set that was opened; none of its images is decoded, but for one.

    Attributes:
        train: records to train on.
        test: records to evaluate on.
        options: how they are decoded.
        shape: (C, H, W) of the images.
    """

    train: Records
    test: Records
    options: Options
    shape: tuple[int, int, int]

    @classmethod
    def opened(cls, data: Mapping[str, Any]) -> "Supervised":
        """Open what the section ``data`` names."""
        train, test, options = open_records(**data)
        channels, height, width = load(test.subset(np.arange(1)), options).images.shape[1:]
        return cls(train, test, options, (channels, height, width))

    @property
    def stand_in(self) -> Data:
        """What a rehearsal has to know of it."""
        return Data(
            samples=len(self.train),
            classes=len(self.train.classes),
            channels=self.shape[0],
        )

    def read(self) -> tuple[ImageSet, ImageSet]:
        """Decode training and test images."""
        return load(self.train, self.options), load(self.test, self.options)


def classifier_data(
    *,
    config: Config,
    seed: int,
    train: ImageSet,
    test: ImageSet,
    rows: np.ndarray | None = None,
    augmentation: Augmentation | None = None,
) -> Data:
    """Return labelled images in the shuffled epochs of supervised learning.

    Args:
        config: the sections ``view`` and ``recipe``.
        seed: of order and view.
        train: images to train on.
        test: images to evaluate on.
        rows: of ``train``, all that there are to the training; None for all of them.
        augmentation: comes before the view; it has a seed of its own.
    """
    recipe, view = build(Recipe, config["recipe"]), build(VIEWS, config["view"])
    examples = train if rows is None else Selected(train, rows)
    order = Shuffled(len(examples), recipe.batch_size, seed, keep_last=recipe.keep_last)
    source = Source(examples, order, ClassifierView(view, augmentation), seed, "trainer")
    classes = len(test.classes)
    return Data(
        feed=InPlace(source),
        samples=len(examples),
        classes=classes,
        channels=train.images.shape[1],
        evaluations={"": Classification(test, ClassifierView(view), classes)},
    )
