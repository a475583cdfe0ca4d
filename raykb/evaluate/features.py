"""What frozen features are worth: they are computed once, and every protocol reads the same.

    network ─ features of training and test images ─┬─ linear_probe ─▶ linear_probe/top1
                                                     └─ knn ──────────▶ knn/top1, neighbours

The network stays as it is; what a protocol learns, it learns of the features alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.data.feed import plain_batches
from raykb.data.source import Examples, View
from raykb.engine.loop import Evaluated
from raykb.parts.backbone import Backbone, require


class Features(NamedTuple):
    """Features of labelled examples, in their order."""

    rows: Tensor  # (N, d) float32
    labels: Tensor  # (N,) int64


class FeatureProtocol(Protocol):
    """Says what features are worth; can be pickled."""

    def __call__(self, train: Features, test: Features) -> Evaluated:
        """Learn of training images' features what those of test images are judged by."""
        ...


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """What a network's features are worth, by several protocols.

    Attributes:
        train: labelled examples that a protocol may learn from.
        test: labelled examples that it is judged by.
        view: its plain form is what the network takes.
        protocols: by name.
        batch_size: examples of one forward pass.
    """

    train: Examples
    test: Examples
    view: View
    protocols: Mapping[str, FeatureProtocol]
    batch_size: int = 500

    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return ``<protocol>/<figure>`` of each protocol, its details, and ``spread``.

        The latter says whether features have collapsed, see :func:`spread`.

        Raises:
            ValueError: the network has no features.
        """
        train, test = (self._features(network, of, device) for of in (self.train, self.test))
        figures = {"spread": float(spread(test.rows))}
        details: dict[str, Any] = {}
        for name, protocol in self.protocols.items():
            found = protocol(train, test)
            figures |= {f"{name}/{figure}": value for figure, value in found.figures.items()}
            details |= {name: found.details} if found.details else {}
        return Evaluated(figures, details)

    @torch.no_grad()
    def _features(self, network: nn.Module, examples: Examples, device: torch.device) -> Features:
        backbone, found = require(network, Backbone, "an evaluation of features"), []
        for fields in plain_batches(examples, self.view, device, batch_size=self.batch_size):
            found.append((backbone.features(fields["images"]).float(), fields["labels"]))
        rows, labels = zip(*found, strict=True)
        return Features(torch.cat(rows), torch.cat(labels))


def spread(rows: Tensor) -> Tensor:
    """Return how far features (N, d) spread over all directions, a scalar in [0, 1].

        sqrt(d) 1/d sum_k std_i(x_ik / |x_i|)

    It is 1 where they point everywhere alike, and 0 where all say the same: they have collapsed
    (Chen, He, "Exploring simple Siamese representation learning", CVPR 2021, section 4.1).
    """
    directions = F.normalize(rows, dim=1)
    each: Tensor = directions.std(0, correction=0) * math.sqrt(rows.shape[1])  # (d,)
    return each.mean()
