"""BYOL: a network predicts of one view what its slow teacher says of the other.

Grill, Strub, Altche, Tallec, Richemond, Buchatskaya, Doersch, Pires, Guo, Azar, Piot, Kavukcuoglu,
Munos, Valko, "Bootstrap Your Own Latent", NeurIPS 2020, arXiv:2006.07733.

    L      = l(p_1, z'_2) + l(p_2, z'_1)                                              (section 3.1)
    l(p,z) = 1/N sum_i | p_i / |p_i| - z_i / |z_i| |^2 = 2 - 2/N sum_i cos(p_i, z_i)            (2)
    p = q(g(f(x))),   z' = g'(f'(x)), no gradient
    f', g' <- m (f', g') + (1 - m) (f, g),   m = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2

Symbols:
    x_1i, x_2i   two views of image i = 1..N
    f, g, q      network, to features (width,); projection to (d,); predictor, (d,) to (d,)
    f', g'       the teacher of f and g
    m, k, K      momentum at step k of K

State: the teacher.

Departures:
    - none in the loss. The teacher's batch norm follows the batches that it sees, as in the
      official code.
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
def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return l, a scalar in [0, 4], of predictions (N, d) and targets (N, d) without gradient."""
    return 2 - 2 * F.cosine_similarity(predictions, targets.detach(), dim=1).mean()


class BYOL(Objective):
    """BYOL.

    Args:
        task: what it is told.
        momentum: m_0.
        projection: width d of the projections.
        hidden: width of the hidden layers of g and q (paper: 4096).
    """

    sees = ViewsBatch

    def __init__(
        self, task: Task, *, momentum: float = 0.996, projection: int = 256, hidden: int = 512
    ) -> None:
        super().__init__(task)
        refuse_outside(momentum=(momentum, 0.0, 1.0))
        self.momentum, self.steps = momentum, task.steps
        width = require(task.network, Backbone, "byol").width
        self.head = normalised_head((width, hidden, projection))
        self.predictor = normalised_head((projection, hidden, projection))
        self.teacher, self.teacher_head = teacher_of(task.network), teacher_of(self.head)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``."""
        features = encoded(network, batch.views)
        predictions = self.predictor(self.head(features))
        first, second = by_view(predictions, batch.views)  # (N, d) of all ranks each
        target_1, target_2 = self._targets(batch.views)
        return {
            "loss": byol_loss(first, target_2) + byol_loss(second, target_1),
            "feature_std": feature_std(features),
        }

    @torch.no_grad()
    def _targets(self, views: Tensor) -> list[Tensor]:
        """Return z' (N, d) of each view."""
        return list(by_view(self.teacher_head(encoded(self.teacher, views)), views))

    def after_step(self, network: nn.Module, step: int) -> None:
        """Let the teacher follow."""
        momentum = cosine_momentum(self.momentum, step, self.steps)
        follow(self.teacher, network, momentum)
        follow(self.teacher_head, self.head, momentum)
