"""Supervised learning beside the others: what labels are worth to a backbone.

    L = -1/N sum_i log softmax(g(f(x_i)))_{y_i}

Symbols:
    x_i, y_i   random crop of image i = 1..N, and its class, 0..C - 1
    f, g       network, to features (width,); linear layer to (C,)

It sees the crops that the methods without labels see, one of each image, and its linear layer is
gone at the end as their heads are, so what is compared are features that were learnt otherwise
alone.
"""

from torch import nn
from torch.nn import functional as F

from raykb.engine.objective import Batch, LabelledBatch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32
from raykb.selfsup.collapse import feature_std


class Supervised(Objective):
    """Cross entropy of a linear layer on the features.

    Args:
        task: what it is told.
    """

    sees = LabelledBatch

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.head = nn.Linear(require(task.network, Backbone, "supervised").width, task.classes)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, the share of hits ``top1``, and ``feature_std``."""
        features = require(network, Backbone, "supervised").features(batch.images)
        logits, labels = gather(at_least_float32(self.head(features))), gather(batch.labels)
        return {
            "loss": F.cross_entropy(logits, labels),
            "top1": (logits.detach().argmax(1) == labels).float().mean(),
            "feature_std": feature_std(features),
        }
