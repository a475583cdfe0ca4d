"""Barlow Twins: two views correlate in each dimension of their own, and in no other.

Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
Reduction", ICML 2021, arXiv:2103.03230.

    L    = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2                             (1)
    C_ij = 1/N sum_b z_1bi z_2bj                                                             (2)
    z    = g(f(x)), each dimension of mean 0 and variance 1 over the batch

Symbols:
    x_1b, x_2b   two views of image b = 1..N
    f, g         network, to features (width,); projection to (d,)
    C            cross-correlation (d, d)

Departures:
    - none in the loss. The variance has 1e-5 added, as the official code's batch norm has.
    - the official code multiplies L by a factor for its LARS, which optimizer and rate do here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.heads import normalised_head
from raykb.parts.precision import in_float32
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.encoding import by_view, encoded


@in_float32
def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return C (d, d) of the projections (N, d) of two views, N at least 2."""
    first, second = (F.batch_norm(rows, None, None, training=True) for rows in (first, second))
    return first.T @ second / len(first)


@in_float32
def barlow_twins_loss(first: Tensor, second: Tensor, redundancy_weight: float) -> Tensor:
    """Return L, a scalar.

    Args:
        first: (N, d) projections of one view, N at least 2.
        second: (N, d), of the other.
        redundancy_weight: lambda.
    """
    correlation = cross_correlation(first, second)
    identity = torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)
    weights = identity + redundancy_weight * (1.0 - identity)
    return (weights * (correlation - identity).square()).sum()


class BarlowTwins(Objective):
    """Barlow Twins.

    Args:
        task: what it is told.
        redundancy_weight: lambda.
        projection: width d of the projections (paper: 8192).
        hidden: width of the two hidden layers of g; None for d, as in the paper.
    """

    sees = ViewsBatch

    def __init__(
        self,
        task: Task,
        *,
        redundancy_weight: float = 0.005,
        projection: int = 512,
        hidden: int | None = None,
    ) -> None:
        super().__init__(task)
        refuse_outside(redundancy_weight=(redundancy_weight, 0.0, float("inf")))
        self.redundancy_weight = redundancy_weight
        width = require(task.network, Backbone, "barlow_twins").width
        between = projection if hidden is None else hidden
        self.head = normalised_head((width, between, between, projection))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``."""
        features = encoded(network, batch.views)
        first, second = by_view(self.head(features), batch.views)  # (N, d) each
        loss = barlow_twins_loss(first, second, self.redundancy_weight)
        return {"loss": loss, "feature_std": feature_std(features)}
