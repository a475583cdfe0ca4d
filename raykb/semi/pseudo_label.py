"""Pseudo-Label: a network's own confident predictions are labels.

Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
Networks", ICML 2013 workshop on challenges in representation learning.

    L   = L_s + w(k) lambda_u L_u
    L_u = 1/N sum_i [m_i >= tau] CE(f(u_i), y_i)           m_i = max q_i,  y_i = argmax q_i
    w   = min(1, k / (0.4 K))                              q_i = softmax f(u_i), no gradient

Symbols:
    u_i        unlabelled image (weak view), i = 1..N; there is no strong view
    f          network, to logits (C,)
    tau        threshold
    k, K       step, steps of the training

Departures:
    - as in TorchSSL and USB, pseudo-labels count from a confidence of tau on (paper: all of them).
    - USB keeps batch norm's running statistics from the unlabelled images, in a pass of their own;
      here labelled and unlabelled ones go through the network together.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.gather import gather
from raykb.semi.batch import SemiBatch
from raykb.semi.consistency import confidence, masked_cross_entropy, predictions
from raykb.semi.pseudo_labels import PseudoLabelFigures


def pseudo_label_loss(logits: Tensor, threshold: float) -> Tensor:
    """Return L_u of the logits (N, C) of unlabelled images."""
    highest, labels = confidence(logits)
    return masked_cross_entropy(logits, labels, highest >= threshold)


def ramp_up(step: int, steps: int, share: float = 0.4) -> float:
    """Return w, which climbs from 0 to 1 over the first ``share`` of the training."""
    return min(1.0, step / (share * steps)) if share else 1.0


class PseudoLabel(Objective):
    """Pseudo-Label.

    Args:
        task: what it is told.
        threshold: tau.
        unlabelled_weight: lambda_u.
        ramp_up: share of the training over which the weight climbs; 0 for the full weight at once.
    """

    sees = SemiBatch

    def __init__(
        self,
        task: Task,
        *,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        ramp_up: float = 0.4,
    ) -> None:
        super().__init__(task)
        self.pseudo_labels = PseudoLabelFigures(task)
        refuse_outside(
            threshold=(threshold, 0.0, 1.0),
            unlabelled_weight=(unlabelled_weight, 0.0, float("inf")),
            ramp_up=(ramp_up, 0.0, 1.0),
        )
        self.threshold, self.unlabelled_weight = threshold, unlabelled_weight
        self.ramp_up, self.steps = ramp_up, task.steps

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its two parts, and the figures of the pseudo-labels."""
        labelled, weak = predictions(network, batch.images, batch.weak)
        loss_labelled = F.cross_entropy(labelled, gather(batch.labels))
        loss_unlabelled = pseudo_label_loss(weak, self.threshold)
        weight = ramp_up(step, self.steps, self.ramp_up) * self.unlabelled_weight
        highest, labels = confidence(weak)
        return {
            "loss": loss_labelled + weight * loss_unlabelled,
            "loss_labelled": loss_labelled.detach(),
            "loss_unlabelled": loss_unlabelled.detach(),
        } | self.pseudo_labels.figures(labels, highest >= self.threshold, batch.ids)
