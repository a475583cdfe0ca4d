"""MoCo v2: a query finds its own key among those of many batches, made by a slow teacher.

He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning",
CVPR 2020, arXiv:1911.05722; Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive
Learning", 2020, arXiv:2003.04297 (v2: a hidden layer in g, T = 0.2, stronger views, a cosine).

    L   = 1/N sum_i -log exp(q_i k_i / T) / [exp(q_i k_i / T) + sum_j exp(q_i n_j / T)]      (1)
    q_i = l2norm(g(f(x_1i))),   k_i = l2norm(g'(f'(x_2i))), no gradient
    f', g' <- m (f', g') + (1 - m) (f, g)                                                    (2)

Symbols:
    x_1i, x_2i   two views of image i = 1..N
    f, g         network, to features (width,); projection to (d,); f', g' their teacher
    n_j          keys of the steps before, j = 1..K: a queue, first in first out
    T, m         temperature, momentum

State: the teacher, and the queue, which begins with random directions.

Departures:
    - batches are not shuffled between ranks for the teacher (paper: so that batch norm's statistics
      do not tell which key belongs to a query). Where that matters, take a backbone without.
    - the queue gets the keys of all ranks in the order of ranks, as in the official code.
    - ``symmetric`` (each view is query once, as in MoCo v3) is an option.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import above, between, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.heads import projection_head
from raykb.parts.precision import in_float32
from raykb.parts.queue import Queue
from raykb.parts.teacher import follow, teacher_of
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.encoding import by_view, encoded


@in_float32
def queue_contrast(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return L, a scalar.

    Args:
        queries: (N, d), of any length: they are normalised here.
        keys: (N, d), of the same images; they get no gradient.
        negatives: (K, d) of length 1, of other images.
        temperature: T.
    """
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys.detach(), dim=1)
    positive = (queries * keys).sum(1, keepdim=True)  # (N, 1)
    similarity = torch.cat([positive, queries @ negatives.T], 1) / temperature  # (N, 1 + K)
    return -similarity.log_softmax(1)[:, 0].mean()


class MoCo(Objective):
    """MoCo v2.

    Args:
        task: what it is told.
        temperature: T.
        momentum: m.
        queue: K; at least the images of a step (paper: 65536).
        projection: width d of the projections.
        hidden: width of the projection's hidden layer; None for that of the features.
        symmetric: whether each view is query once.
    """

    sees = ViewsBatch

    def __init__(
        self,
        task: Task,
        *,
        temperature: float = 0.2,
        momentum: float = 0.999,
        queue: int = 4096,
        projection: int = 128,
        hidden: int | None = None,
        symmetric: bool = False,
    ) -> None:
        super().__init__(task)
        self.temperature, self.momentum, self.symmetric = temperature, momentum, symmetric
        check_settings(self, temperature=above(0), momentum=between(0, 1))
        width = require(task.network, Backbone, "moco").width
        self.head = projection_head(width, projection, hidden=hidden, negative_slope=0.0)
        self.teacher, self.teacher_head = teacher_of(task.network), teacher_of(self.head)
        self.queue = Queue(queue, projection)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``."""
        count = 2 if self.symmetric else 1
        asked, answered = batch.views[:, :count], batch.views.flip(1)[:, :count]
        features = encoded(network, asked)
        queries = by_view(self.head(features), asked)  # (N, d) each
        keys = self._keys(answered)
        negatives = self.queue.seen()
        losses = [
            queue_contrast(query, key, negatives, self.temperature)
            for query, key in zip(queries, keys, strict=True)
        ]
        self.queue.push(torch.cat(keys))
        return {"loss": sum(losses[1:], losses[0]) / count, "feature_std": feature_std(features)}

    @torch.no_grad()
    def _keys(self, views: Tensor) -> list[Tensor]:
        """Return the keys (N, d) of each of the views (N, V, C, H, W), of length 1."""
        rows = by_view(self.teacher_head(encoded(self.teacher, views)), views)
        return [F.normalize(own, dim=1) for own in rows]

    def after_step(self, network: nn.Module, step: int) -> None:
        """Let the teacher follow."""
        follow(self.teacher, network, self.momentum)
        follow(self.teacher_head, self.head, self.momentum)
