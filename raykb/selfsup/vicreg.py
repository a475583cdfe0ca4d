"""VICReg: views agree, each dimension varies, and no two say the same.

Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning", ICLR 2022, arXiv:2105.04906.

    L    = lambda s(Z, Z') + mu/2 [v(Z) + v(Z')] + nu [c(Z) + c(Z')]                         (6)
    v(Z) = 1/d sum_j max(0, 1 - sqrt(Var(Z_j) + eps))                                     (1, 2)
    c(Z) = 1/d sum_{i != j} Cov(Z)_ij^2                                                   (3, 4)
    s    = 1/(N d) sum_i |z_i - z'_i|^2                                                      (5)

Symbols:
    Z, Z'        projections (N, d) of the two views of images i = 1..N, g(f(x))
    f, g         network, to features (width,); projection to (d,)
    Var, Cov     over the batch, divided by N - 1

Departures:
    - as in the official code, s is a mean over dimensions, too (paper: a sum), and v has a half
      (paper: none), with the weights that the paper gives.
"""

from typing import NamedTuple

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


class Parts(NamedTuple):
    """The terms of L, without their weights; scalars."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


@in_float32
def vicreg_parts(first: Tensor, second: Tensor) -> Parts:
    """Return s, (v + v') / 2 and c + c' of the projections (N, d) of two views, N at least 2."""
    return Parts(
        F.mse_loss(first, second),
        (variance_loss(first) + variance_loss(second)) / 2,
        covariance_loss(first) + covariance_loss(second),
    )


@in_float32
def variance_loss(rows: Tensor, eps: float = 1e-4) -> Tensor:
    """Return v, a scalar, of rows (N, d), N at least 2."""
    return F.relu(1.0 - (rows.var(0) + eps).sqrt()).mean()


@in_float32
def covariance_loss(rows: Tensor) -> Tensor:
    """Return c, a scalar, of rows (N, d), N at least 2."""
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / (len(rows) - 1)  # (d, d)
    own = torch.eye(len(covariance), dtype=torch.bool, device=rows.device)
    return covariance.masked_fill(own, 0.0).square().sum() / len(covariance)


class VICReg(Objective):
    """VICReg.

    Args:
        task: what it is told.
        invariance_weight: lambda.
        variance_weight: mu.
        covariance_weight: nu.
        projection: width d of the projections (paper: 8192).
        hidden: width of the two hidden layers of g; None for d, as in the paper.
    """

    sees = ViewsBatch

    def __init__(
        self,
        task: Task,
        *,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        projection: int = 512,
        hidden: int | None = None,
    ) -> None:
        super().__init__(task)
        refuse_outside(
            invariance_weight=(invariance_weight, 0.0, float("inf")),
            variance_weight=(variance_weight, 0.0, float("inf")),
            covariance_weight=(covariance_weight, 0.0, float("inf")),
        )
        self.weights = invariance_weight, variance_weight, covariance_weight
        width = require(task.network, Backbone, "vicreg").width
        between = projection if hidden is None else hidden
        self.head = normalised_head((width, between, between, projection))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its three parts without their weights, and ``feature_std``."""
        features = encoded(network, batch.views)
        first, second = by_view(self.head(features), batch.views)  # (N, d) each
        parts = vicreg_parts(first, second)
        weighted = [weight * part for weight, part in zip(self.weights, parts, strict=True)]
        return {
            "loss": sum(weighted[1:], weighted[0]),
            "loss_invariance": parts.invariance.detach(),
            "loss_variance": parts.variance.detach(),
            "loss_covariance": parts.covariance.detach(),
            "feature_std": feature_std(features),
        }
