"""Supervised learning from the labelled images alone: what every method has to beat.

    L = L_s = mean_b CE(f(x_b), y_b)

Symbols:
    x_b, y_b   labelled image (weak view) and label, b = 1..B
    f          network, to logits (C,)

Departures:
    - batch norm sees labelled images alone, and unlabelled ones are not even fetched.
"""

from torch import nn
from torch.nn import functional as F

from raykb.engine.objective import Batch, LabelledBatch, Objective, Terms
from raykb.parts.gather import gather
from raykb.semi.consistency import predictions


class Supervised(Objective):
    """Cross entropy of the labelled images.

    Args:
        task: what it is told.
    """

    sees = LabelledBatch

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``."""
        (labelled,) = predictions(network, batch.images)
        return {"loss": F.cross_entropy(labelled, gather(batch.labels))}
