"""FixMatch: what a network is sure of in a weak view, it shall say of a strong one.

Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel, "FixMatch: Simplifying
Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020, arXiv:2001.07685.

    L   = L_s + lambda_u L_u                                                   (section 2.2)
    L_s = 1/B sum_b CE(f(x_b), y_b)                                            (3)
    L_u = 1/N sum_i [m_i >= tau] CE(f(A(u_i)), y_i)                            (4)
    q_i = softmax f(a(u_i)), no gradient;   m_i = max q_i,   y_i = argmax q_i

Symbols:
    x_b, y_b   labelled image (weak view) and label, b = 1..B
    u_i        unlabelled image, i = 1..N; N = mu B
    a, A       weak and strong view
    f          network, to logits (C,)
    tau        threshold

Departures:
    - none in the loss. N divides L_u, however few samples are confident: to divide by these would
      multiply its weight early on.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.gather import gather
from raykb.semi.batch import SemiBatch
from raykb.semi.consistency import (
    check_same_shape,
    confidence,
    masked_cross_entropy,
    predictions,
)
from raykb.semi.pseudo_labels import PseudoLabelFigures


def fixmatch_loss(logits_weak: Tensor, logits_strong: Tensor, threshold: float) -> Tensor:
    """Return L_u, a scalar, which has no gradient towards the weak views.

    Args:
        logits_weak: (N, C).
        logits_strong: (N, C), of the same images.
        threshold: tau.

    Raises:
        ValueError: the logits are not as many, or not of as many classes.
    """
    check_same_shape(logits_weak, logits_strong)
    highest, labels = confidence(logits_weak)
    return masked_cross_entropy(logits_strong, labels, highest >= threshold)


class FixMatch(Objective):
    """FixMatch.

    Args:
        task: what it is told.
        threshold: tau.
        unlabelled_weight: lambda_u.
    """

    sees = SemiBatch

    def __init__(
        self, task: Task, *, threshold: float = 0.95, unlabelled_weight: float = 1.0
    ) -> None:
        super().__init__(task)
        self.pseudo_labels = PseudoLabelFigures(task)
        refuse_outside(
            threshold=(threshold, 0.0, 1.0),
            unlabelled_weight=(unlabelled_weight, 0.0, float("inf")),
        )
        self.threshold, self.unlabelled_weight = threshold, unlabelled_weight

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its two parts, and the figures of the pseudo-labels."""
        labelled, weak, strong = predictions(
            network, batch.images, batch.weak, *batch.strong.unbind(1)
        )
        loss_labelled = F.cross_entropy(labelled, gather(batch.labels))
        loss_unlabelled = fixmatch_loss(weak, strong, self.threshold)
        highest, labels = confidence(weak)
        return {
            "loss": loss_labelled + self.unlabelled_weight * loss_unlabelled,
            "loss_labelled": loss_labelled.detach(),
            "loss_unlabelled": loss_unlabelled.detach(),
        } | self.pseudo_labels.figures(labels, highest >= self.threshold, batch.ids)
