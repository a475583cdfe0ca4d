"""What a network offers to those who put something of their own on it.

Every classifier of the house makes its logits in two parts, ``classify(features(images))``, so a
method can take the features between them, and a method that needs more says which:

    features   (N, width)          what the classifier takes of an image, as most methods do
    maps       (N, C, h, w)        with places: regions, attention, class evidence
    stages     a list of them      of each resolution: an output layer of several scales
    evidence   at each place       of a network with such a layer
    tokens     (N, T, width)       of a transformer
    text       joint, matching     of a network that takes texts, too, beside images or alone
    patches    embed, encode       of a transformer some of whose patches are hidden from it
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from raykb.parts.spatial_output import Evidence


@runtime_checkable
class Backbone(Protocol):
    """A network with features, of which it makes logits."""

    width: int

    def features(self, images: Tensor) -> Tensor:
        """Return features (N, width) of images."""
        ...

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, classes) of features."""
        ...


@runtime_checkable
class WithMaps(Backbone, Protocol):
    """A backbone whose features come of maps, which have ``map_width`` channels."""

    map_width: int

    def maps(self, images: Tensor) -> Tensor:
        """Return the last maps (N, C, h, w) of images."""
        ...


@runtime_checkable
class WithStages(WithMaps, Protocol):
    """A backbone with maps of each resolution, which have ``stage_widths`` channels."""

    stage_widths: list[int]

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the last maps (N, C, h, w) of each resolution; the last are its ``maps``."""
        ...

    def pooled(self, maps: Tensor) -> Tensor:
        """Return features (N, width) of its last maps."""
        ...


@runtime_checkable
class WithEvidence(WithMaps, Protocol):
    """A backbone with a second, ``spatial`` output layer that says which class is where."""

    spatial: nn.Module

    def evidence(self, images: Tensor) -> Evidence:
        """Return what both layers say of images."""
        ...


@runtime_checkable
class WithTokens(Backbone, Protocol):
    """A backbone whose features come of tokens."""

    def tokens(self, images: Tensor) -> Tensor:
        """Return the last tokens (N, T, width) of images."""
        ...


@runtime_checkable
class WithText(Backbone, Protocol):
    """A backbone that takes texts, too: tokens (N, L), 0 where there are none.

    Attributes:
        textual: embeds tokens; ``textual.words`` has a row for each of the vocabulary.
        matching: from pooled tokens to logits of not belonging together, and of belonging.
        patch: side of a patch in pixels.
    """

    patch: int
    textual: nn.Module
    matching: nn.Module

    def features(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return features (N, width) of images; ``sizes`` as of :meth:`joint`."""
        ...

    def joint(
        self,
        images: Tensor,
        tokens: Tensor,
        sizes: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Any:
        """Return tokens of ``text`` (N, L, width), of the ``image`` (N, K, width), and ``pooled``.

        The latter, (N, width), is what ``matching`` takes; ``present`` (N, K) are the patches that
        are no padding. ``sizes`` (N, 2) are height and width of images in pixels that others were
        padded to, ``places`` (N, K) the patches that are seen.
        """
        ...

    def text_features(self, tokens: Tensor) -> Tensor:
        """Return features (N, width) of texts alone."""
        ...


@runtime_checkable
class WithPatches(WithTokens, Protocol):
    """A transformer in two parts, so that patches can be hidden or replaced between them.

    Its tokens are ``encode(embed(images) + positions(images))``.

    Attributes:
        channels: of the images.
        patch: side of a patch in pixels.
        depth: number of blocks.
    """

    channels: int
    patch: int
    depth: int

    def embed(self, images: Tensor) -> Tensor:
        """Return the patches (N, T, width) of images, row by row, that know no positions."""
        ...

    def positions(self, images: Tensor) -> Tensor:
        """Return the positions (1, T, width) of the patches of such images."""
        ...

    def encode(self, embedded: Tensor, *, blocks: Sequence[int] = ()) -> Tensor:
        """Return the tokens (N, S, width) of any S patches with their positions.

        ``blocks`` are those, from 1 to ``depth``, over whose outputs the mean is taken; the last
        one where none is named.
        """
        ...


def require(network: nn.Module, offer: type[Any], who: str) -> Any:
    """Return ``network``, which offers what ``who`` needs.

    Raises:
        ValueError: it does not; what is missing is named.
    """
    if isinstance(network, offer):
        return network
    wanted = sorted(
        name
        for kind in offer.__mro__
        for name in (*getattr(kind, "__annotations__", ()), *vars(kind))
        if not name.startswith("_")
    )
    missing = [name for name in dict.fromkeys(wanted) if not hasattr(network, name)]
    raise ValueError(
        f"network: {type(network).__name__} has no {', '.join(missing)}, which {who} needs; take "
        "one that has, or give it these methods (raykb/parts/backbone.py)"
    )


def freeze_classifier(network: nn.Module) -> None:
    """Keep from the optimizer, and from what ranks share, the parameters that logits alone need.

    Raises:
        ValueError: the network has no features.
    """
    backbone = require(network, Backbone, "a training without labels")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    logits = backbone.classify(torch.zeros(1, backbone.width, device=trained[0].device))
    gradients = torch.autograd.grad(logits.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is None)


class LayeredClassifier(nn.Sequential):
    """Layers, one after another, that end in those of a classifier: maps, a vector, logits.

    It is the plain ``nn.Sequential`` that it looks like, which can be cut into stages.
    """

    @property
    def width(self) -> int:
        """Width of the features."""
        last: Any = self[-1]
        return int(last.in_features)

    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer takes, (N, width)."""
        return self._through(images, 0, len(self) - 1)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, classes) of features (N, width)."""
        logits: Tensor = self[-1](features)
        return logits

    @property
    def map_width(self) -> int:
        """Channels of the maps, as the first linear layer after their pooling takes them."""
        pooling, *after = list(self)[self._pooling() :]
        linear: Any = next(layer for layer in after if isinstance(layer, nn.Linear))
        size: Any = pooling.output_size
        places = math.prod(size if isinstance(size, tuple) else (size, size))
        return int(linear.in_features) // places

    def maps(self, images: Tensor) -> Tensor:
        """Return what the pooling takes that comes before the features, (N, C, h, w)."""
        return self._through(images, 0, self._pooling())

    @property
    def stage_widths(self) -> list[int]:
        """Channels of the maps of each resolution."""
        return [conv_width(list(self)[:end]) for end in self._stage_ends()]

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the maps before each layer that strides, and the last ones, (N, C, h, w) each."""
        found, maps = [], images
        for first, last in pairwise([0, *self._stage_ends()]):
            maps = self._through(maps, first, last)
            found.append(maps)
        return found

    def pooled(self, maps: Tensor) -> Tensor:
        """Return features (N, width) of the last maps."""
        return self._through(maps, self._pooling(), len(self) - 1)

    def _stage_ends(self) -> list[int]:
        last = self._pooling()
        return [n for n, layer in enumerate(self) if 0 < n < last and _strides(layer)] + [last]

    def _pooling(self) -> int:
        found = [n for n, layer in enumerate(self) if isinstance(layer, nn.AdaptiveAvgPool2d)]
        if not found:
            raise AttributeError("network: no adaptive pooling among its layers, and so no maps")
        return found[-1]

    def _through(self, values: Tensor, first: int, last: int) -> Tensor:
        for layer in list(self)[first:last]:
            values = layer(values)
        return values


def conv_width(layers: Iterable[nn.Module]) -> int:
    """Return the channels that the last convolution in layers gives."""
    inner = (module for layer in layers for module in layer.modules())
    *_, width = (module.out_channels for module in inner if isinstance(module, nn.Conv2d))
    return width


def _strides(layer: nn.Module) -> bool:
    return any(getattr(module, "stride", 1) not in (1, (1, 1)) for module in layer.modules())
