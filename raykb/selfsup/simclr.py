"""SimCLR: of all images of a batch, each view finds the other one of its own image.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, arXiv:2002.05709.

    L      = 1/2N sum_k [l(2k-1, 2k) + l(2k, 2k-1)]                                (algorithm 1)
    l(i,j) = -log exp(s_ij / T) / sum_{k != i} exp(s_ik / T)                                 (1)
    s_ij   = z_i z_j / (|z_i| |z_j|),   z = g(f(x))

Symbols:
    x_i    view i = 1..2N: two of each of N images
    f, g   network, to features (width,); projection to (d,)
    T      temperature

Departures:
    - none in the loss: NT-Xent over the views of all ranks.
    - g has no batch norm (official code: it has), so a view's projection does not depend on others.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import above, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.heads import projection_head
from raykb.parts.precision import in_float32
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.encoding import by_view, encoded


@in_float32
def nt_xent_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return L, a scalar.

    Args:
        first: (N, d), of any length: they are normalised here.
        second: (N, d), of other views of the same images.
        temperature: T.

    Raises:
        ValueError: the rows are not as many, or not of one width.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"first, second: {tuple(first.shape)} and {tuple(second.shape)}, must both be (N, d)"
        )
    rows = F.normalize(torch.cat([first, second]), dim=1)  # (2N, d)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    similarity = (rows @ rows.T / temperature).masked_fill(itself, -torch.inf)  # (2N, 2N)
    other = torch.arange(len(rows), device=rows.device).roll(len(first))  # i + N, i - N
    return F.cross_entropy(similarity, other)


class SimCLR(Objective):
    """SimCLR.

    Args:
        task: what it is told.
        temperature: T.
        projection: width d of the projections.
        hidden: width of the projection's hidden layer; None for that of the features.
    """

    sees = ViewsBatch

    def __init__(
        self,
        task: Task,
        *,
        temperature: float = 0.5,
        projection: int = 128,
        hidden: int | None = None,
    ) -> None:
        super().__init__(task)
        self.temperature = temperature
        check_settings(self, temperature=above(0))
        width = require(task.network, Backbone, "simclr").width
        self.head = projection_head(width, projection, hidden=hidden, negative_slope=0.0)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``."""
        features = encoded(network, batch.views)
        first, second = by_view(self.head(features), batch.views)  # (N, d) of all ranks each
        return {
            "loss": nt_xent_loss(first, second, self.temperature),
            "feature_std": feature_std(features),
        }
