"""What the methods have in common: predictions over all ranks, pseudo-labels, masked means.

Every rank computes the losses of the whole batch from the logits of all ranks. So a method's file
knows of one batch alone, its running statistics are the same everywhere, and the mean of gradients
that data-parallel training takes is the gradient of the whole batch.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.parts.backbone import Backbone
from raykb.parts.gather import gather, ranks
from raykb.parts.precision import at_least_float32


class Confidence(NamedTuple):
    """What a network believes of unlabelled samples; without gradient."""

    highest: Tensor  # (N,) probability of the likeliest class
    labels: Tensor  # (N,) int64, that class


def predictions(network: nn.Module, *images: Tensor) -> list[Tensor]:
    """Return the logits (N, classes) of each of several sets of images, over all ranks.

    They go through the network together, so that batch norm sees them all.
    """
    logits: Tensor = network(torch.cat(images))
    return _over_ranks(logits, images)


def predictions_and_projections(
    network: nn.Module, head: nn.Module, *images: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return logits, and a head's projections of the features, as :func:`predictions` does."""
    backbone = cast(Backbone, network)
    features = backbone.features(torch.cat(images))
    return _over_ranks(backbone.classify(features), images), _over_ranks(head(features), images)


def _over_ranks(rows: Tensor, images: Sequence[Tensor]) -> list[Tensor]:
    """Cut rows into those of each set of images, and gather these over the ranks."""
    sizes = [len(part) for part in images]
    by_rank = gather(at_least_float32(rows)).unflatten(0, (ranks(), sum(sizes)))
    return [part.flatten(0, 1) for part in by_rank.split(sizes, dim=1)]


def confidence(logits: Tensor) -> Confidence:
    """Return the likeliest class of logits (N, classes) and its probability."""
    return Confidence(*at_least_float32(logits.detach()).softmax(1).max(1))


def check_same_shape(logits_weak: Tensor, logits_strong: Tensor) -> None:
    """Raise ValueError unless both are (N, classes): cross entropy takes many other pairs, too."""
    if logits_weak.ndim < 2 or logits_weak.shape != logits_strong.shape:
        raise ValueError(
            f"logits_weak, logits_strong: {tuple(logits_weak.shape)} and "
            f"{tuple(logits_strong.shape)}, must both be (N, classes), row i of the same image"
        )


def masked_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return ``mean_i weights_i CE(logits_i, targets_i)``, over all N and not the weighted alone.

    The mean of no samples is 0.

    Args:
        logits: (N, classes).
        targets: (N,) classes, or (N, classes) probabilities.
        weights: (N,) in [0, 1], or whether a sample counts.
    """
    losses = F.cross_entropy(at_least_float32(logits), targets, reduction="none")  # (N,)
    return (losses * weights).sum() / max(losses.numel(), 1)


def average(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    """Return ``momentum * old + (1 - momentum) * new``."""
    return momentum * old + (1.0 - momentum) * new
