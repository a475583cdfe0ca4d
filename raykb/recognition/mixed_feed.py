"""A feed of labelled images whose batches are mixed, as a function of (seed, step) alone.

It lies around any other feed, behind views and normalisation, on the device of the training. What
becomes of a step does not depend on those before it, so a run that goes on sees what it would have
seen; ranks draw the same, each for its own share of the step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from raykb.engine.loop import Feed, Worker
from raykb.engine.seeding import generator
from raykb.recognition.mixture import Mixing, Mixture

Fields = dict[str, Tensor]


def mixed_fields(fields: Fields, mixture: Mixture, classes: int) -> Fields:
    """Return the fields of a mixed batch, of ``images`` (N, C, H, W) and ``labels`` (N,).

    Returns:
        ``images`` as they are mixed, ``targets`` (N, classes), ``masks`` (N, 1, H, W) or
        (N, 1, 1, 1) and ``donors`` (N, C, H, W): where the former are 0, an image is the latter's;
        and whatever else there was. ``labels`` are there only where no others are mixed in.
    """
    images, labels = fields["images"], fields["labels"]
    donors = mixture.donors(images)
    found = fields | {
        "images": mixture.blended(images, donors),
        "targets": mixture.targets(labels, classes),
        "masks": mixture.masks,
        "donors": donors,
    }
    if mixture.order is not None:
        del found["labels"]  # of half of an image, which an objective would take for all of it
    return found


@dataclass(frozen=True, eq=False)
class MixedFeed:
    """Mixes the batches of another feed.

    Attributes:
        feed: gives ``images`` and ``labels``.
        mixing: a row of ``MIXINGS``.
        classes: their number.
        seed: of what is drawn.
    """

    feed: Feed
    mixing: Mixing
    classes: int
    seed: int

    def batches(self, start: int, worker: Worker, stop: int | None = None) -> Iterator[Fields]:
        """Yield a worker's share of steps start, start + 1, … (see ``engine.loop.Feed``)."""
        running = self.feed.batches(start, worker, stop)  # refuses at once
        return (self._mixed(fields, step) for step, fields in enumerate(running, start))

    def _mixed(self, fields: Fields, step: int) -> Fields:
        drawn = self.mixing.draw(fields["images"], generator(self.seed, "mixing", step))
        return mixed_fields(fields, drawn, self.classes)

    def figures(self) -> dict[str, float]:
        """Return the figures of the other feed."""
        return self.feed.figures()

    def close(self) -> None:
        """End what the other feed has started."""
        self.feed.close()
