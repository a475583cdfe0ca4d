"""Labelled images, of which there are few: what any step sees, as a function of (seed, step).

They come without an end: one global permutation for each (seed, epoch), one after another, cut into
batches that may reach over the end of an epoch, or over several. Ranks take every n-th of a batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raykb.data.images import ImageSet
from raykb.data.strong import PairOfViews
from raykb.engine.seeding import generator


def order(count: int, batch_size: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs and positions (batch_size,) of the samples of a step.

    Args:
        count: number of samples; positions are below it.
        batch_size: samples of one step.
        seed: of the order.
        step: which one.
    """
    numbers = step * batch_size + np.arange(batch_size)
    epochs, places = np.divmod(numbers, count)
    positions = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        permuted = torch.randperm(count, generator=generator(seed, "labelled order", epoch)).numpy()
        positions[here] = permuted[places[here]]
    return epochs, positions


@dataclass(frozen=True)
class Labelled:
    """Weak views of labelled images.

    Attributes:
        images: all of them.
        batch_size: of one step, over all ranks.
        views: makes the weak view, keyed by (seed, epoch, id).
        seed: of order and views.
    """

    images: ImageSet
    batch_size: int
    views: PairOfViews
    seed: int

    def at(self, step: int, rank: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return a rank's views (B / size, C, H, W) uint8 and labels (B / size,) of a step."""
        every = order(len(self.images), self.batch_size, self.seed, step)
        epochs, rows = (part[rank::size] for part in every)
        pixels = torch.from_numpy(self.images.images[rows]).to(device)
        views = torch.empty_like(pixels)
        for epoch in np.unique(epochs).tolist():
            chosen = np.flatnonzero(epochs == epoch)
            here, ids = torch.from_numpy(chosen).to(device), self.images.ids[rows[chosen]]
            views[here] = self.views.weak(pixels[here], ids, self.seed, epoch)
        return views, torch.from_numpy(self.images.labels[rows]).to(device)
