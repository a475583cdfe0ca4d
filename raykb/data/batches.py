"""What a step sees, as a function of (seed, number of the step).

The order of an epoch is a permutation keyed by (seed, epoch), and what a sample looks like is keyed
by (seed, epoch, sample id). So the step's number is the whole data position, and a resumed training
sees what it would have seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raykb.data.images import ImageSet
from raykb.data.views import View
from raykb.engine.seeding import generator, keyed_uniform, stream_seed


class Epochs(Protocol):
    """How long is trained; a :class:`raykb.engine.recipe.Recipe` is one."""

    @property
    def epochs(self) -> int:
        """Passes over the data."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples of one step."""
        ...

    def steps_per_epoch(self, count: int) -> int:
        """Return the batches of one pass over ``count`` samples."""
        ...


def shuffled(
    count: int, epochs: Epochs, seed: int, start: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (epoch, positions) of the batches of steps start, start + 1, … to the last epoch's.

    Args:
        count: number of samples; positions are below it.
        epochs: how many, and the size of batches.
        seed: of the order.
        start: steps that are done.
    """
    per_epoch, size = epochs.steps_per_epoch(count), epochs.batch_size
    for epoch in range(start // per_epoch, epochs.epochs):
        order = torch.randperm(count, generator=generator(seed, "order", epoch)).numpy()
        first = start % per_epoch if epoch == start // per_epoch else 0
        for number in range(first, per_epoch):
            yield epoch, order[number * size : (number + 1) * size]


def viewed(
    images: ImageSet,
    rows: np.ndarray,
    view: View,
    seed: int,
    epoch: int,
    device: torch.device,
    augmentation: Callable[[Tensor, np.ndarray, int], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return float images (N, C, H, W) and labels (N,) of ``rows`` as ``epoch`` sees them.

    ``augmentation`` comes before the view, on uint8.
    """
    ids = images.ids[rows]
    pixels = torch.from_numpy(images.images[rows]).to(device)
    if augmentation is not None:
        pixels = augmentation(pixels, ids, epoch)
    uniforms = keyed_uniform(stream_seed(seed, "view", epoch), ids, view.draws)
    labels = torch.from_numpy(images.labels[rows]).to(device)
    return view(pixels, uniforms), labels


@dataclass(frozen=True)
class LabelledImages:
    """Images and labels for a classifier, as the first stage of a pipeline reads them.

    Attributes:
        train: images to train on.
        test: images to evaluate on.
        view: default augmentation, and the plain form of test images.
        epochs: how long is trained, in batches of which size.
        seed: of order and augmentation.
        device: where images are augmented.
    """

    train: ImageSet
    test: ImageSet
    view: View
    epochs: Epochs
    seed: int
    device: torch.device

    def training(self, start: int, share: int, shares: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield images, labels and the size of the whole batch for steps start, start + 1, ….

        Args:
            start: steps that are done.
            share: which of the shares of each batch; every ``shares``-th sample.
            shares: their number.
        """
        for epoch, rows in shuffled(len(self.train), self.epochs, self.seed, start):
            own = rows[share::shares]
            yield (
                *viewed(self.train, own, self.view, self.seed, epoch, self.device),
                len(rows),
            )

    def testing(
        self, share: int, shares: int, *, batch_size: int = 500
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield plain test images, labels and the number of all test images."""
        own = np.arange(share, len(self.test), shares)
        for first in range(0, len(own), batch_size):
            rows = own[first : first + batch_size]
            images = self.view.plain(torch.from_numpy(self.test.images[rows]).to(self.device))
            yield images, torch.from_numpy(self.test.labels[rows]).to(self.device), len(self.test)
