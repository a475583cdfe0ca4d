"""What a backbone is worth: its features are computed once, and every protocol reads the same.

    network ─ Judged ─┬─ features of training and test images ─┬─ linear_probe ─▶ linear_probe/top1
                      │                                        └─ knn ──────────▶ knn/top1
                      └─ the network itself ── a copy is trained, or its maps are read

The network stays as it is; what a protocol learns, it learns of features, maps or a copy.
"""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.data.feed import plain_batches
from raykb.data.image_views import ClassifierView
from raykb.data.source import Examples, View
from raykb.engine.loop import Evaluated
from raykb.parts.backbone import Backbone, require

HASHED = 10_000  # examples whose arrays are held at once


class Features(NamedTuple):
    """Features of labelled examples, in their order."""

    rows: Tensor  # (N, d) float32
    labels: Tensor  # (N,) int64


class Store(Protocol):
    """Keeps arrays by a key that says what they were made of; can be pickled."""

    def read(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of this key, or None."""
        ...

    def write(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays."""
        ...


@dataclass(frozen=True, eq=False)
class JudgedBy:
    """Labelled images that backbones are judged by.

    Attributes:
        train: examples that a protocol may learn from.
        test: examples that it is judged by.
        view: its plain form is what a network takes.
        classes: their number.
        seed: of what a protocol draws.
        batch_size: examples of one forward pass.
        store: keeps features of training and test images; None where nobody asks for them again.
    """

    train: Examples
    test: Examples
    view: ClassifierView
    classes: int
    seed: int = 0
    batch_size: int = 500
    store: Store | None = None


@dataclass(frozen=True, eq=False)
class Judged:
    """A backbone under evaluation.

    Attributes:
        network: in evaluation mode; nobody may change it.
        device: where it is.
        by: the images.
    """

    network: nn.Module
    device: torch.device
    by: JudgedBy

    @functools.cached_property
    def train(self) -> Features:
        """Features of the training images."""
        return self._kept(self.by.train)

    @functools.cached_property
    def test(self) -> Features:
        """Features of the test images."""
        return self._kept(self.by.test)

    @torch.no_grad()
    def features(self, examples: Examples) -> Features:
        """Return the features of labelled examples.

        Raises:
            ValueError: the network has none.
        """
        backbone = require(self.network, Backbone, "an evaluation of features")
        found, size = [], self.by.batch_size
        for fields in plain_batches(examples, self.by.view, self.device, batch_size=size):
            found.append((backbone.features(fields["images"]).float(), fields["labels"]))
        rows, labels = zip(*found, strict=True)
        return Features(torch.cat(rows), torch.cat(labels))

    def _kept(self, examples: Examples) -> Features:
        """Return the features of examples, from the store if it has them."""
        if self.by.store is None:
            return self.features(examples)
        key = feature_key(self.network, examples, self.by.view)
        if (kept := self.by.store.read(key)) is not None:
            rows, labels = (torch.from_numpy(kept[part]) for part in Features._fields)
            return Features(rows.to(self.device), labels.to(self.device))
        made = self.features(examples)
        arrays = {name: part.cpu().numpy() for name, part in made._asdict().items()}
        self.by.store.write(key, arrays)
        return made


def feature_key(network: nn.Module, examples: Examples, view: View) -> str:
    """Return what features depend on as 32 hexadecimal digits: network, examples, view."""
    digest = hashlib.blake2b(f"{settings_of(network)} {view!r}".encode(), digest_size=16)
    state = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    for first in range(0, len(examples), HASHED):
        rows = np.arange(first, min(first + HASHED, len(examples)))
        for name, array in (state | examples.read(rows).arrays).items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        state = {}  # it is in the digest now
    return digest.hexdigest()


def settings_of(network: nn.Module) -> str:
    """Return what a network computes as far as its weights do not say it: its pooling, heads, …

    It is each module's type and those of its attributes that are plain values, or tuples.
    """
    plain = (bool, int, float, str, tuple)
    return "\n".join(
        f"{name} {type(module).__name__} "
        f"{sorted((key, repr(own)) for key, own in vars(module).items() if isinstance(own, plain))}"
        for name, module in network.named_modules()
    )


class BackboneProtocol(Protocol):
    """Says what a backbone is worth; a section of the config, and can be pickled.

    Attributes:
        needs: what a backbone must offer to it, of :mod:`raykb.parts.backbone`.
        task: what kind of task it is; a standing over several tasks gives each the same weight.
    """

    needs: ClassVar[type[Any]]
    task: ClassVar[str]

    @property
    def compared(self) -> Sequence[str]:
        """Names of the figures that backbones are compared by, the most telling one first."""
        ...

    def __call__(self, judged: Judged) -> Evaluated:
        """Return figures, each by its own name, and details."""
        ...


@dataclass(frozen=True, eq=False)
class BackboneEvaluation:
    """What a backbone is worth, by several protocols.

    Attributes:
        by: the images.
        protocols: by name.
    """

    by: JudgedBy
    protocols: Mapping[str, BackboneProtocol]

    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return ``<protocol>/<figure>`` of each protocol, its details, and ``spread``.

        The latter says whether features have collapsed, see :func:`spread`.

        Raises:
            ValueError: the network has no features, or not what a protocol needs.
        """
        judged = Judged(network, device, self.by)
        figures = {"spread": float(spread(judged.test.rows))}
        details: dict[str, Any] = {}
        for name, protocol in self.protocols.items():
            require(network, protocol.needs, name)
            found = protocol(judged)
            figures |= {f"{name}/{figure}": value for figure, value in found.figures.items()}
            details |= {name: found.details} if found.details else {}
        return Evaluated(figures, details)


def spread(rows: Tensor) -> Tensor:
    """Return how far features (N, d) spread over all directions, a scalar in [0, 1].

        sqrt(d) 1/d sum_k std_i(x_ik / |x_i|)

    It is 1 where they point everywhere alike, and 0 where all say the same: they have collapsed
    (Chen, He, "Exploring simple Siamese representation learning", CVPR 2021, section 4.1).
    """
    directions = F.normalize(rows, dim=1)
    each: Tensor = directions.std(0, correction=0) * math.sqrt(rows.shape[1])  # (d,)
    return each.mean()
