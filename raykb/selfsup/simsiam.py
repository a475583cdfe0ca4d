"""SimSiam: each view predicts the other, whose gradient is stopped.

Chen, He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv:2011.10566.

    L       = 1/2 D(p_1, z_2) + 1/2 D(p_2, z_1)                                              (4)
    D(p, z) = -1/N sum_i p_i z_i / (|p_i| |z_i|),  no gradient of z                       (1, 3)
    z = g(f(x)),   p = h(z)

Symbols:
    x_1i, x_2i   two views of image i = 1..N
    f, g, h      network, to features (width,); projection to (d,); predictor, (d,) to (d,)

Departures:
    - none in the loss. Both views pass batch norm together (official code: one after the other).
    - the rate of the predictor follows the schedule of all (official code: it may stay as it is).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.heads import normalised_head
from raykb.parts.precision import in_float32
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.encoding import by_view, encoded


@in_float32
def negative_cosine(predictions: Tensor, projections: Tensor) -> Tensor:
    """Return D, a scalar in [-1, 1], of predictions (N, d) and projections (N, d)."""
    return -F.cosine_similarity(predictions, projections.detach(), dim=1).mean()


class SimSiam(Objective):
    """SimSiam.

    Args:
        task: what it is told.
        projection: width d of the projections, and of the hidden layers of g (paper: 2048).
        predictor: width of the hidden layer of h; None for a quarter of d, as in the paper.
    """

    sees = ViewsBatch

    def __init__(self, task: Task, *, projection: int = 512, predictor: int | None = None) -> None:
        super().__init__(task)
        width = require(task.network, Backbone, "simsiam").width
        between = max(projection // 4, 1) if predictor is None else predictor
        self.head = normalised_head((width, projection, projection, projection), last_norm=True)
        self.predictor = normalised_head((projection, between, projection))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, ``feature_std``, and that of the projections, ``projection_std``."""
        features = encoded(network, batch.views)
        projections = self.head(features)
        z_1, z_2 = by_view(projections, batch.views)  # (N, d) each
        p_1, p_2 = by_view(self.predictor(projections), batch.views)
        return {
            "loss": (negative_cosine(p_1, z_2) + negative_cosine(p_2, z_1)) / 2,
            "feature_std": feature_std(features),
            "projection_std": feature_std(projections),
        }
