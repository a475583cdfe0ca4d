"""RotNet: tell by how many right angles an image was turned.

Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations",
ICLR 2018, arXiv:1803.07728.

    L = -1/N sum_i log softmax(g(f(x_i)))_{y_i}                                           (2, 3)

Symbols:
    x_i, y_i   image i = 1..N, turned by y_i quarters of a circle, y_i = 0..3
    f, g       network, to features (width,); linear layer to (4,)

Departures:
    - each image is in a batch once, turned by a draw of its own (paper: in all four turns).
"""

from torch import nn
from torch.nn import functional as F

from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32
from raykb.selfsup.batch import TurnedBatch
from raykb.selfsup.collapse import feature_std

TURNS = 4


class Rotation(Objective):
    """RotNet.

    Args:
        task: what it is told.
    """

    sees = TurnedBatch

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.head = nn.Linear(require(task.network, Backbone, "rotation").width, TURNS)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, the share of hits ``pretext_top1``, and ``feature_std``."""
        features = require(network, Backbone, "rotation").features(batch.images)
        logits, labels = gather(at_least_float32(self.head(features))), gather(batch.labels)
        return {
            "loss": F.cross_entropy(logits, labels),
            "pretext_top1": (logits.detach().argmax(1) == labels).float().mean(),
            "feature_std": feature_std(features),
        }
