"""SoftMatch: unconfident pseudo-labels count less instead of not at all.

Chen, Tao, Fan, Wang, Wang, Schiele, Xie, Raj, Savvides, "SoftMatch: Addressing the
Quantity-Quality Trade-off in Semi-supervised Learning", ICLR 2023, arXiv:2301.10921.

    L   = L_s + lambda_u L_u
    L_u = 1/N sum_i w_i CE(f(A(u_i)), y_i)
    w_i = exp(-min(m_i - mu, 0)^2 / (2 v / n^2))         truncated Gaussian of the confidence
    mu  <- l mu + (1 - l) mean_i m_i                     v <- l v + (1 - l) var_i m_i   (unbiased)
    m_i = max norm(q_i / p)                              p <- l p + (1 - l) mean_i q_i
                                                         uniform distribution alignment
    y_i = argmax q_i, without alignment

Symbols:
    q_i        softmax of the weak view's logits (C,), no gradient
    f, A       network, to logits (C,); strong view
    mu, v      running mean (1/C at the start) and variance (1 at the start) of the confidence
    p          running mean prediction (C,)
    n          width of the Gaussian in standard deviations
    l          momentum

State: ``mean`` mu, ``variance`` v, ``marginal`` p; a step's own batch is in them.

Departures:
    - p starts uniform (official code: at the first batch's mean), and norm(q / p) is
      norm(q (1/C + 1e-6) / (p + 1e-6)), as there.
    - the running statistics are those of all ranks. One sample has no variance: v stays.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.gather import gather
from raykb.semi.batch import SemiBatch
from raykb.semi.consistency import average, confidence, masked_cross_entropy, predictions
from raykb.semi.pseudo_labels import PseudoLabelFigures


class Running(NamedTuple):
    """Running statistics of the confidence."""

    mean: Tensor  # ()
    variance: Tensor  # ()


def updated(running: Running, highest: Tensor, momentum: float) -> Running:
    """Return mu and v after a batch of confidences (N,)."""
    variance = highest.var() if len(highest) > 1 else running.variance
    return Running(
        average(running.mean, highest.mean(), momentum),
        average(running.variance, variance, momentum),
    )


def gaussian_weights(highest: Tensor, running: Running, width: float) -> Tensor:
    """Return w (N,) of confidences (N,): 1 from the mean on, less below."""
    below = (highest - running.mean).clamp(max=0.0)
    variance = running.variance.clamp(min=1e-12)  # equal confidences have none
    return torch.exp(-below.square() / (2.0 * variance / width**2))


def aligned(probabilities: Tensor, marginal: Tensor) -> Tensor:
    """Return probabilities (N, C) whose running mean would be uniform if it is ``marginal``."""
    uniform = 1.0 / len(marginal)
    ratio = probabilities * (uniform + 1e-6) / (marginal + 1e-6)
    return ratio / ratio.sum(1, keepdim=True)


class SoftMatch(Objective):
    """SoftMatch.

    Args:
        task: what it is told.
        width: n.
        momentum: l.
        align: whether confidences are those of aligned predictions.
        unlabelled_weight: lambda_u.
    """

    sees = SemiBatch

    mean: Tensor
    variance: Tensor
    marginal: Tensor

    def __init__(
        self,
        task: Task,
        *,
        width: float = 2.0,
        momentum: float = 0.999,
        align: bool = True,
        unlabelled_weight: float = 1.0,
    ) -> None:
        super().__init__(task)
        self.pseudo_labels = PseudoLabelFigures(task)
        refuse_outside(
            width=(width, 1e-6, float("inf")),
            momentum=(momentum, 0.0, 1.0),
            unlabelled_weight=(unlabelled_weight, 0.0, float("inf")),
        )
        self.width, self.momentum, self.align = width, momentum, align
        self.unlabelled_weight = unlabelled_weight
        self.register_buffer("mean", torch.tensor(1.0 / task.classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("marginal", torch.full((task.classes,), 1.0 / task.classes))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its two parts, and the figures of the pseudo-labels."""
        labelled, weak, strong = predictions(
            network, batch.images, batch.weak, *batch.strong.unbind(1)
        )
        weights = self._weights(weak)
        labels = confidence(weak).labels
        loss_labelled = F.cross_entropy(labelled, gather(batch.labels))
        loss_unlabelled = masked_cross_entropy(strong, labels, weights)
        return {
            "loss": loss_labelled + self.unlabelled_weight * loss_unlabelled,
            "loss_labelled": loss_labelled.detach(),
            "loss_unlabelled": loss_unlabelled.detach(),
            "threshold": self.mean.clone(),
        } | self.pseudo_labels.figures(labels, weights, batch.ids)

    def _weights(self, logits_weak: Tensor) -> Tensor:
        """Follow the confidences of a batch, then weigh its samples by them."""
        probabilities = logits_weak.detach().softmax(1)  # (N, C)
        if self.align:
            self.marginal.copy_(average(self.marginal, probabilities.mean(0), self.momentum))
            probabilities = aligned(probabilities, self.marginal)
        highest = probabilities.amax(1)
        running = Running(self.mean, self.variance)
        for own, value in zip(running, updated(running, highest, self.momentum), strict=True):
            own.copy_(value)
        return gaussian_weights(highest, running, self.width)
