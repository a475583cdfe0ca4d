"""NNCLR: the positive of an image is the nearest neighbour of its other view.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman, "With a Little Help from My Friends: Nearest-Neighbor
Contrastive Learning of Visual Representations", ICCV 2021, arXiv:2104.14548.

    L        = 1/2 [L(z_1, p_2) + L(z_2, p_1)]
    L(z, p)  = -1/N sum_i log exp(NN(z_i) p_i / T) / sum_k exp(NN(z_i) p_k / T)              (3)
    NN(z)    = argmin_{n in Q} ||z - n||                                                     (4)
    z = l2norm(g(f(x))),   p = l2norm(q(g(f(x))))

Symbols:
    x_1i, x_2i   two views of image i = 1..N
    f, g, q      network, to features (width,); projection to (d,); predictor, (d,) to (d,)
    Q            the z_1 of the steps before, a queue of K
    T            temperature

State: the queue, which begins with random directions.

Departures:
    - none in the loss, which is the paper's pseudocode: the negatives of a neighbour are the
      predictions p_k of the other view alone (lightly's example has the other neighbours, too).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import above, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.heads import normalised_head
from raykb.parts.precision import in_float32
from raykb.parts.queue import Queue
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.encoding import by_view, encoded


@in_float32
def nearest_neighbours(rows: Tensor, support: Tensor) -> Tensor:
    """Return NN(z) (N, d) of rows (N, d) among the support (K, d) of length 1; no gradient."""
    similarity = F.normalize(rows.detach(), dim=1) @ support.T  # (N, K)
    return support[similarity.argmax(1)]


@in_float32
def neighbour_contrast(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """Return L(z, p), a scalar.

    Args:
        neighbours: (N, d), NN(z) of one view.
        predictions: (N, d), p of the other, of any length: they are normalised here.
        temperature: T.
    """
    similarity = neighbours @ F.normalize(predictions, dim=1).T / temperature  # (N, N)
    return -similarity.log_softmax(1).diagonal().mean()


class NNCLR(Objective):
    """NNCLR.

    Args:
        task: what it is told.
        temperature: T.
        queue: K (paper: 98304).
        projection: width d of the projections (paper: 256).
        hidden: width of the two hidden layers of g (paper: 2048).
        predictor: width of the hidden layer of q (paper: 4096).
    """

    sees = ViewsBatch

    def __init__(
        self,
        task: Task,
        *,
        temperature: float = 0.1,
        queue: int = 4096,
        projection: int = 128,
        hidden: int = 512,
        predictor: int = 512,
    ) -> None:
        super().__init__(task)
        self.temperature = temperature
        check_settings(self, temperature=above(0))
        width = require(task.network, Backbone, "nnclr").width
        self.head = normalised_head((width, hidden, hidden, projection), last_norm=True)
        self.predictor = normalised_head((projection, predictor, projection))
        self.queue = Queue(queue, projection)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``."""
        features = encoded(network, batch.views)
        projections = self.head(features)
        z_1, z_2 = by_view(projections, batch.views)  # (N, d) each
        p_1, p_2 = by_view(self.predictor(projections), batch.views)
        support = self.queue.seen()
        loss_1 = neighbour_contrast(nearest_neighbours(z_1, support), p_2, self.temperature)
        loss_2 = neighbour_contrast(nearest_neighbours(z_2, support), p_1, self.temperature)
        self.queue.push(F.normalize(z_1, dim=1))
        return {"loss": (loss_1 + loss_2) / 2, "feature_std": feature_std(features)}
