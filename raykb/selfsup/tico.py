"""TiCo: two views agree, and no direction is used more than others by many batches.

Zhu, Moraes, Karakulak, Sobol, Canziani, LeCun, "TiCo: Transformation Invariance and Covariance
Contrast for Self-Supervised Visual Representation Learning", 2022, arXiv:2206.10698.

    L   = 1 - 1/N sum_i z_i z'_i + rho/N sum_i z_i C_t z_i
    C_t = beta C_{t-1} + (1 - beta)/N sum_i z_i z_i^T,   C_0 = 0, no gradient
    z   = l2norm(g(f(x_1))),   z' = l2norm(g'(f'(x_2))), no gradient
    f', g' <- m (f', g') + (1 - m) (f, g),   m = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2

Symbols:
    x_1i, x_2i   two views of image i = 1..N
    f, g         network, to features (width,); projection to (d,); f', g' their teacher
    C            second moments of the projections (d, d)
    rho, beta    weight of what contrasts, and how slowly C moves
    m, k, K      momentum at step k of K

State: the teacher, and C.

Departures:
    - each view is z once, and the loss is the mean of both; C moves by the mean of both.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.heads import normalised_head
from raykb.parts.precision import in_float32
from raykb.parts.teacher import cosine_momentum, follow, teacher_of
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.encoding import by_view, encoded


@in_float32
def tico_loss(rows: Tensor, targets: Tensor, moments: Tensor, contrast: float) -> Tensor:
    """Return L, a scalar.

    Args:
        rows: z (N, d), of any length: they are normalised here.
        targets: z' (N, d), likewise; they get no gradient.
        moments: C (d, d) without gradient.
        contrast: rho.
    """
    rows, targets = F.normalize(rows, dim=1), F.normalize(targets.detach(), dim=1)
    return 1 - (rows * targets).sum(1).mean() + contrast * (rows @ moments * rows).sum(1).mean()


@in_float32
def second_moments(rows: Tensor) -> Tensor:
    """Return 1/N sum_i z_i z_i^T (d, d) of the directions of rows (N, d), without gradient."""
    directions = F.normalize(rows.detach(), dim=1)
    return directions.T @ directions / len(rows)


class TiCo(Objective):
    """TiCo.

    Args:
        task: what it is told.
        contrast: rho.
        memory: beta.
        momentum: m_0.
        projection: width d of the projections.
        hidden: width of the projection's hidden layer (paper: 4096).
    """

    sees = ViewsBatch

    def __init__(
        self,
        task: Task,
        *,
        contrast: float = 8.0,
        memory: float = 0.9,
        momentum: float = 0.99,
        projection: int = 256,
        hidden: int = 512,
    ) -> None:
        super().__init__(task)
        refuse_outside(
            contrast=(contrast, 0.0, float("inf")),
            memory=(memory, 0.0, 1.0),
            momentum=(momentum, 0.0, 1.0),
        )
        self.contrast, self.memory = contrast, memory
        self.momentum, self.steps = momentum, task.steps
        self.head = normalised_head(
            (require(task.network, Backbone, "tico").width, hidden, projection)
        )
        self.teacher, self.teacher_head = teacher_of(task.network), teacher_of(self.head)
        self.moments: Tensor
        self.register_buffer("moments", torch.zeros(projection, projection))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``."""
        features = encoded(network, batch.views)
        first, second = by_view(self.head(features), batch.views)  # (N, d) of all ranks each
        target_1, target_2 = self._targets(batch.views)
        moved = second_moments(torch.cat([first, second]))
        self.moments = self.memory * self.moments + (1 - self.memory) * moved
        losses = [
            tico_loss(rows, targets, self.moments, self.contrast)
            for rows, targets in ((first, target_2), (second, target_1))
        ]
        return {"loss": torch.stack(losses).mean(), "feature_std": feature_std(features)}

    @torch.no_grad()
    def _targets(self, views: Tensor) -> list[Tensor]:
        """Return z' (N, d) of each view."""
        return list(by_view(self.teacher_head(encoded(self.teacher, views)), views))

    def after_step(self, network: nn.Module, step: int) -> None:
        """Let the teacher follow."""
        momentum = cosine_momentum(self.momentum, step, self.steps)
        follow(self.teacher, network, momentum)
        follow(self.teacher_head, self.head, momentum)
