"""Unsupervised data augmentation: sharpened predictions of weak views teach strong ones.

Xie, Dai, Hovy, Luong, Le, "Unsupervised Data Augmentation for Consistency Training", NeurIPS 2020,
arXiv:1904.12848.

    L   = L_s + lambda_u L_u
    L_s = 1/B sum_b [max p_b <= eta(k)] CE(f(x_b), y_b)         training signal annealing, optional
    L_u = 1/N sum_i [m_i >= tau] CE(f(A(u_i)), t_i)             t_i = softmax(f(a(u_i)) / T)
    m_i = max softmax f(a(u_i)), p_b = softmax f(x_b); no gradient through m, t, p

    eta = 1/C + (1 - 1/C) s(k / K)        s(r) = r  |  exp(5 (r - 1))  |  1 - exp(-5 r)

Symbols:
    x_b, y_b   labelled image (weak view) and label, b = 1..B
    u_i        unlabelled image, i = 1..N
    a, A       weak and strong view
    f          network, to logits (C,)
    T, tau     temperature of the targets, threshold of the unsharpened confidence
    k, K       step, steps of the training

Departures:
    - annealing drops labelled samples by their highest probability, as in USB (paper: by that of
      the right class), and B divides what is left.
    - USB loses the temperature by a slip; here targets are sharpened.
"""

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from raykb.engine.arguments import refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32
from raykb.semi.batch import SemiBatch
from raykb.semi.consistency import (
    check_same_shape,
    confidence,
    masked_cross_entropy,
    predictions,
)
from raykb.semi.pseudo_labels import PseudoLabelFigures

Annealing = Literal["none", "linear", "exponential", "logarithmic"]

_SHAPES: dict[str, Callable[[float], float]] = {
    "none": lambda progress: 1.0,
    "linear": lambda progress: progress,
    "exponential": lambda progress: math.exp(5.0 * (progress - 1.0)),
    "logarithmic": lambda progress: 1.0 - math.exp(-5.0 * progress),
}


def uda_loss(
    logits_weak: Tensor, logits_strong: Tensor, threshold: float, temperature: float
) -> Tensor:
    """Return L_u of logits (N, C), which has no gradient towards the weak views."""
    check_same_shape(logits_weak, logits_strong)
    highest, _ = confidence(logits_weak)
    targets = (at_least_float32(logits_weak.detach()) / temperature).softmax(1)  # (N, C)
    return masked_cross_entropy(logits_strong, targets, highest >= threshold)


def annealed_threshold(progress: float, classes: int, annealing: Annealing) -> float:
    """Return eta at a progress in [0, 1]; 1 if there is no annealing."""
    return 1.0 / classes + (1.0 - 1.0 / classes) * _SHAPES[annealing](progress)


def annealed_loss(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return L_s of the labelled samples whose confidence is not above the threshold yet."""
    return masked_cross_entropy(logits, labels, confidence(logits).highest <= threshold)


class UDA(Objective):
    """Unsupervised data augmentation.

    Args:
        task: what it is told.
        threshold: tau.
        temperature: T.
        annealing: of the training signal.
        unlabelled_weight: lambda_u.
    """

    sees = SemiBatch

    def __init__(
        self,
        task: Task,
        *,
        threshold: float = 0.8,
        temperature: float = 0.4,
        annealing: Annealing = "none",
        unlabelled_weight: float = 1.0,
    ) -> None:
        super().__init__(task)
        self.pseudo_labels = PseudoLabelFigures(task)
        refuse_outside(
            threshold=(threshold, 0.0, 1.0),
            temperature=(temperature, 1e-6, float("inf")),
            unlabelled_weight=(unlabelled_weight, 0.0, float("inf")),
        )
        if annealing not in _SHAPES:
            raise ValueError(f"annealing: {annealing!r}, must be one of {', '.join(_SHAPES)}")
        self.threshold, self.temperature = threshold, temperature
        self.annealing, self.steps = annealing, task.steps
        self.unlabelled_weight = unlabelled_weight

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its two parts, and the figures of the pseudo-labels."""
        labelled, weak, strong = predictions(
            network, batch.images, batch.weak, *batch.strong.unbind(1)
        )
        eta = annealed_threshold(step / self.steps, labelled.shape[1], self.annealing)
        loss_labelled = annealed_loss(labelled, gather(batch.labels), eta)
        loss_unlabelled = uda_loss(weak, strong, self.threshold, self.temperature)
        highest, labels = confidence(weak)
        return {
            "loss": loss_labelled + self.unlabelled_weight * loss_unlabelled,
            "loss_labelled": loss_labelled.detach(),
            "loss_unlabelled": loss_unlabelled.detach(),
        } | self.pseudo_labels.figures(labels, highest >= self.threshold, batch.ids)
