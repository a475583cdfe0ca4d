"""Cross entropy of targets that are shared between classes, as mixing makes them.

    L = -1/N sum_i sum_k t_ik log softmax f(x_i)_k
      = 1/N sum_i [k_i CE(f(x_i), y_i) + (1 - k_i) CE(f(x_i), y_o(i))]

Symbols:
    x_i, t_i   image i = 1..N, perhaps mixed, and the share of each class (K,)
    y, o, k    labels, partners and kept shares that t is made of (see ``mixture.py``)
    f          network, to logits (K,)

With label smoothing (Szegedy et al., CVPR 2016) it is the mixture of smoothed labels.
"""

from torch import nn
from torch.nn import functional as F

from raykb.engine.arguments import check_settings, within
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.precision import at_least_float32
from raykb.recognition.batch import SoftBatch


class SoftCrossEntropy(Objective):
    """Cross entropy of soft targets.

    Args:
        task: what it is told.
        label_smoothing: share of the target mass spread evenly over all classes, in [0, 1).
    """

    sees = SoftBatch

    def __init__(self, task: Task, *, label_smoothing: float = 0.0) -> None:
        super().__init__(task)
        self.label_smoothing = label_smoothing
        check_settings(self, label_smoothing=within(0, 1))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, and ``top1``: how often the largest target has the largest logit."""
        logits = at_least_float32(network(batch.images))  # (N, classes)
        loss = F.cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing)
        hits = logits.detach().argmax(1) == batch.targets.argmax(1)
        return {"loss": loss, "top1": hits.float().mean()}
