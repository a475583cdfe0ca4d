"""Decoupled contrastive learning: what attracts a pair has no part in what pushes others away.

Yeh, Hong, Hsu, Liu, Chen, LeCun, "Decoupled Contrastive Learning", ECCV 2022, arXiv:2110.06848.

    L      = 1/2N sum_k sum_i L_i^k                              over both views k of all images i
    L_i^1  = -w_i S(1i, 2i) + log sum_{j != i} [exp S(1i, 1j) + exp S(1i, 2j)]               (6)
    S(a, b) = z_a z_b / T                                        z = l2norm(g(f(x)))
    w_i    = 1                                                   DCL
    w_i    = 2 - exp(z_1i z_2i / s) / mean_j exp(z_1j z_2j / s)  DCLW, no gradient

Symbols:
    x_ki       view k = 1, 2 of image i = 1..N
    f, g       network, to features (width,); projection to (d,)
    T, s       temperature of the contrast, of the weights

InfoNCE has the pair in the sum, too, which multiplies all gradients by the share that the others
have in it: little where pairs are easy or negatives few, as in a small batch.

Departures:
    - L is a mean, as in lightly (paper: a sum; a widespread unofficial code: twice this mean).
    - w has no gradient (paper: silent; that code lets it through). Its mean is 1, a weight is at
      most 2, and one far below 0 pushes its pair apart: nothing here keeps it from that.
    - L has no lower bound at 0: with all pairs alike and others orthogonal it is
      -1 / T + log(2 N - 2). A negative loss is no error.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import above, check_settings, or_none
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.heads import projection_head
from raykb.parts.precision import in_float32
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.encoding import by_view, encoded


def dcl_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return L of DCL, a scalar, which may be negative.

    Args:
        first: (N, d) projections of one view, of any length: they are normalised here.
        second: (N, d), of the other.
        temperature: T.

    Raises:
        ValueError: there are no negatives, or the two are not of one shape.
    """
    return _decoupled(first, second, temperature, None)


def dclw_loss(first: Tensor, second: Tensor, temperature: float, sigma: float) -> Tensor:
    """Return L of DCLW, as :func:`dcl_loss` does; ``sigma`` is s."""
    return _decoupled(first, second, temperature, sigma)


def pair_weights(similarity: Tensor, sigma: float) -> Tensor:
    """Return w (N,) of the similarities z_1i z_2i (N,) of pairs; without gradient."""
    return 2.0 - len(similarity) * (similarity.detach() / sigma).softmax(0)


@in_float32
def _decoupled(first: Tensor, second: Tensor, temperature: float, sigma: float | None) -> Tensor:
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError(
            f"first, second: {tuple(first.shape)} and {tuple(second.shape)}, must both be (N, d) "
            "of at least 2 images: with one there is nothing to tell it from"
        )
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    pairs = (first * second).sum(1)  # (N,)
    both = torch.cat([first, second])
    image = torch.arange(len(first), device=first.device).repeat(2)
    own = image[:, None] == image  # (2N, 2N)
    pushed = (both @ both.T / temperature).masked_fill(own, -torch.inf).logsumexp(1)  # (2N,)
    weighted = pairs if sigma is None else pairs * pair_weights(pairs, sigma)
    return pushed.mean() - weighted.mean() / temperature


class DCL(Objective):
    """Decoupled contrastive learning.

    Args:
        task: what it is told.
        temperature: T.
        sigma: s of DCLW; None for DCL.
        projection: width d of the projections.
        hidden: width of the projection's hidden layer; None for that of the features.
    """

    sees = ViewsBatch

    def __init__(
        self,
        task: Task,
        *,
        temperature: float = 0.1,
        sigma: float | None = None,
        projection: int = 128,
        hidden: int | None = None,
    ) -> None:
        super().__init__(task)
        self.temperature, self.sigma = temperature, sigma
        check_settings(self, temperature=above(0), sigma=or_none(above(0)))
        width = require(task.network, Backbone, "dcl").width
        self.head = projection_head(width, projection, hidden=hidden, negative_slope=0.0)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``."""
        features = encoded(network, batch.views)
        first, second = by_view(self.head(features), batch.views)  # (N, d) each
        loss = _decoupled(first, second, self.temperature, self.sigma)
        return {"loss": loss, "feature_std": feature_std(features)}
