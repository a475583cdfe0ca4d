"""From views of images to rows of all ranks, as the losses of two views take them.

Views go through a network together, so that batch norm sees them all; every rank then computes the
loss of the whole batch from the rows of all ranks, and the mean of gradients that data-parallel
training takes is the gradient of the whole batch.

    views (N, V, C, H, W) ─ encoded ─▶ (N V, width) ─ a head ─▶ (N V, d) ─ by_view ─▶ V of (N, d)
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from raykb.parts.backbone import Backbone
from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32, in_float32


def encoded(network: nn.Module, *views: Tensor) -> Tensor:
    """Return features (N V, width) of views (N, V, C, H, W); of several kinds one after another.

    Views of one kind have one size, and pass the network once.
    """
    backbone = cast(Backbone, network)
    parts = [backbone.features(kind.flatten(0, 1)) for kind in views if kind.shape[1]]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def by_view(rows: Tensor, *views: Tensor) -> Sequence[Tensor]:
    """Return for each view the rows (N, d) of all ranks, in at least float32.

    Args:
        rows: (N V, d), made of what :func:`encoded` returned of these views.
        views: as they were given to it.
    """
    exact, found = at_least_float32(rows), list[Tensor]()
    kinds = [kind.shape[:2] for kind in views if kind.shape[1]]
    for shape, part in zip(kinds, exact.split([n * v for n, v in kinds]), strict=True):
        found += gather(part.unflatten(0, shape)).unbind(1)
    return found


def held(weight: Tensor, *, hold: bool) -> Tensor:
    """Return ``weight``; while it is held, all of its gradient is 0.

    It is still there, for data-parallel training waits for the gradient of each parameter.
    """
    return weight.detach() + 0.0 * weight if hold else weight


@in_float32
def scores(rows: Tensor, directions: Tensor) -> Tensor:
    """Return the products (N, K) of rows (N, d) and directions (K, d)."""
    return rows @ directions.T
