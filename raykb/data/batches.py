"""Labelled images for a classifier whose first stage reads them on its own: a pipeline's."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raykb.data.feed import InPlace, plain_batches
from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.order import Shuffled
from raykb.data.source import Source
from raykb.data.views import ImageView
from raykb.engine.loop import Worker
from raykb.engine.recipe import Recipe


@dataclass(frozen=True)
class LabelledImages:
    """Images and labels for a classifier, as the first stage of a pipeline reads them.

    Attributes:
        train: images to train on.
        test: images to evaluate on.
        view: default augmentation, and the plain form of test images.
        recipe: how long is trained, in batches of which size.
        seed: of order and augmentation.
        device: where images are augmented.
    """

    train: ImageSet
    test: ImageSet
    view: ImageView
    recipe: Recipe
    seed: int
    device: torch.device

    def training(self, start: int, share: int, shares: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield images, labels and the size of the whole batch for steps start, start + 1, ….

        Args:
            start: steps that are done.
            share: which of the shares of each batch; every ``shares``-th sample.
            shares: their number.
        """
        batch, last = self.recipe.batch_size, self.recipe.keep_last
        order = Shuffled(len(self.train), batch, self.seed, keep_last=last)
        stop = self.recipe.lengths(len(self.train)).steps
        source = Source(self.train, order, ClassifierView(self.view), self.seed, "trainer")
        steps = InPlace(source).batches(start, Worker(share, shares, self.device), stop)
        for step, fields in enumerate(steps, start):
            yield fields["images"], fields["labels"], order.batch(step)

    def testing(
        self, share: int, shares: int, *, batch_size: int = 500
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield plain test images, labels and the number of all test images."""
        view = ClassifierView(self.view)
        steps = plain_batches(
            self.test, view, self.device, batch_size=batch_size, rank=share, size=shares
        )
        for fields in steps:
            yield fields["images"], fields["labels"], len(self.test)
