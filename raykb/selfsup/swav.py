"""SwAV: from one view of an image, tell which cluster another view of it was assigned to.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments", NeurIPS 2020, arXiv:2006.09882.

    L       = 1/2 sum_{t=1,2} 1/(V - 1) sum_{v != t} l(s_v, q_t)                             (1)
    l(s, q) = -1/N sum_i sum_k q_ik log softmax(s_i / T)_k                                   (2)
    s_v     = z_v C^T,   z = l2norm(g(f(x))),   |C_k| = 1
    q_t     = M diag(u) exp(s_t / eps) diag(v), whose rows sum to 1, columns to M / K       (5)

Symbols:
    x_vi        view v = 1..V of image i = 1..N: 1 and 2 are large, the others small crops
    f, g        network, to features (width,); projection to (d,)
    C           prototypes (K, d), trained
    q           codes: of M rows, without gradient; u, v by a few steps of Sinkhorn and Knopp
    T, eps      temperature, smoothness of the codes

State: on request, where a step has few images, a queue of the z of steps before for each
large view; their scores take part in u and v.

Departures:
    - none in the loss. Codes are of all ranks' rows, as in the official code.
    - prototypes are made of length 1 after each step (official code: before it).
    - the queue is filled from the first step, and used from ``queue_start`` on once it is full.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import above, at_least, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.heads import normalised_head
from raykb.parts.precision import in_float32
from raykb.parts.queue import Queue
from raykb.selfsup.batch import MultiCropBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.encoding import by_view, encoded, held, scores


@torch.no_grad()
@in_float32
def sinkhorn(similarity: Tensor, smoothness: float, iterations: int) -> Tensor:
    """Return codes q (M, K): of each row the shares that the prototypes have in it.

    Args:
        similarity: s (M, K).
        smoothness: eps; towards 0 a code is one prototype, towards infinity all are alike.
        iterations: of the normalisation of columns, then of rows, which is exact at the end.
    """
    logs = similarity / smoothness  # of the codes: their own exponentials can be out of range
    for _ in range(iterations):
        logs = logs.log_softmax(0).log_softmax(1)
    return logs.exp()


@in_float32
def swapped_prediction(similarity: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Return l(s, q), a scalar, of s (N, K) of one view and the codes (N, K) of another."""
    return -(codes * (similarity / temperature).log_softmax(1)).sum(1).mean()


class SwAV(Objective):
    """SwAV.

    Args:
        task: what it is told.
        temperature: T.
        smoothness: eps.
        iterations: of Sinkhorn and Knopp.
        local_views: small crops of each image.
        prototypes: K (paper: 3000).
        projection: width d of the projections.
        hidden: width of the projection's hidden layer (paper: 2048); None for that of the features.
        queue: rows of each large view that are kept for codes; 0 for none.
        queue_start: steps before it is used.
        freeze_steps: steps before prototypes are trained (official code: the first epoch).
    """

    sees = MultiCropBatch

    def __init__(
        self,
        task: Task,
        *,
        temperature: float = 0.1,
        smoothness: float = 0.05,
        iterations: int = 3,
        local_views: int = 4,
        prototypes: int = 128,
        projection: int = 128,
        hidden: int | None = None,
        queue: int = 0,
        queue_start: int = 0,
        freeze_steps: int = 0,
    ) -> None:
        super().__init__(task)
        self.temperature, self.smoothness, self.iterations = temperature, smoothness, iterations
        self.queue_start, self.freeze_steps = queue_start, freeze_steps
        self.local_views = local_views
        check_settings(
            self,
            temperature=above(0),
            smoothness=above(0),
            iterations=at_least(1),
            local_views=at_least(0),
        )
        width = require(task.network, Backbone, "swav").width
        self.head = normalised_head((width, width if hidden is None else hidden, projection))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, projection), dim=1))
        self.queues = nn.ModuleList(Queue(queue, projection) for _ in range(2 if queue else 0))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``."""
        crops = batch.views, batch.local
        features = encoded(network, *crops)
        z = [F.normalize(rows, dim=1) for rows in by_view(self.head(features), *crops)]
        prototypes = held(self.prototypes, hold=step < self.freeze_steps)
        similarity = [scores(rows, prototypes) for rows in z]  # (N, K) each
        losses = []
        for large in range(2):
            codes = self._codes(large, z[large], similarity[large], step)
            others = [own for view, own in enumerate(similarity) if view != large]
            losses += [swapped_prediction(own, codes, self.temperature) for own in others]
        return {"loss": torch.stack(losses).mean(), "feature_std": feature_std(features)}

    @torch.no_grad()
    def _codes(self, large: int, z: Tensor, similarity: Tensor, step: int) -> Tensor:
        """Return the codes (N, K) of a large view, and put it into its queue."""
        if not self.queues:
            return sinkhorn(similarity, self.smoothness, self.iterations)
        queue = cast(Queue, self.queues[large])
        if step >= self.queue_start and step * len(z) >= len(queue.rows):
            similarity = torch.cat([similarity, scores(queue.rows, self.prototypes)])
        queue.push(z)
        return sinkhorn(similarity, self.smoothness, self.iterations)[: len(z)]

    @torch.no_grad()
    def after_step(self, network: nn.Module, step: int) -> None:
        """Put the prototypes back onto the sphere."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
