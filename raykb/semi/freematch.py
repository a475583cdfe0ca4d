"""FreeMatch: thresholds that follow the network's own confidence, and fair shares of the classes.

Wang, Chen, Heng, Hou, Fan, Wu, Wang, Savvides, Shinozaki, Raj, Schiele, Xie, "FreeMatch:
Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, arXiv:2205.07246.

    L   = L_s + lambda_u L_u + w_f L_f
    L_u = 1/N sum_i [m_i >= tau(y_i)] CE(f(A(u_i)), y_i)        self-adaptive threshold (SAT):
    tau(c) = t p_c / max_c' p_c'                                t <- l t + (1 - l) mean_i m_i
                                                                p <- l p + (1 - l) mean_i q_i
    L_f = sum_c P_c log S_c                                     self-adaptive fairness (SAF):
    P = norm(p / h)                                             h <- l h + (1 - l) hist_i y_i
    S = norm(s / g),  s = mean_M r_j,  g = hist_M argmax r_j    r_j = softmax f(A(u_j))

Symbols:
    q_i        softmax of the weak view's logits, no gradient; m_i = max q_i, y_i = argmax q_i
    M          samples over their threshold; without any L_f is 0
    t, p, h    running threshold, probabilities (C,) and histogram (C,); 1/C at the start
    f, A       network, to logits (C,); strong view
    l, w_f     momentum, weight of fairness
    norm       divides by the sum; what is divided by an empty bin is 0

State: ``threshold`` t, ``probabilities`` p, ``histogram`` h; a step's own batch is in them.

Departures:
    - none in the loss. log S_c is log(S_c + 1e-12), as in the official code.
    - the running statistics, s and g are those of all ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32
from raykb.semi.batch import SemiBatch
from raykb.semi.consistency import (
    average,
    confidence,
    masked_cross_entropy,
    predictions,
)
from raykb.semi.pseudo_labels import PseudoLabelFigures, counts


class Running(NamedTuple):
    """Running statistics."""

    threshold: Tensor  # ()
    probabilities: Tensor  # (C,)
    histogram: Tensor  # (C,)


def updated(
    running: Running, logits_weak: Tensor, momentum: float, *, clip: float | None = None
) -> Running:
    """Return t, p and h after a batch of logits (N, C); t is at most ``clip``."""
    probabilities = at_least_float32(logits_weak.detach()).softmax(1)  # (N, C)
    highest, labels = probabilities.max(1)
    share = counts(labels, logits_weak.shape[1]) / len(labels)
    threshold = average(running.threshold, highest.mean(), momentum)
    return Running(
        threshold if clip is None else threshold.clamp(max=clip),
        average(running.probabilities, probabilities.mean(0), momentum),
        average(running.histogram, share, momentum),
    )


def adaptive_thresholds(running: Running) -> Tensor:
    """Return tau(c), (C,)."""
    return running.threshold * running.probabilities / running.probabilities.max()


def fairness(logits_strong: Tensor, confident: Tensor, running: Running) -> Tensor:
    """Return L_f of the logits (N, C) of strong views, of which ``confident`` (N,) count."""
    logits_strong = at_least_float32(logits_strong)
    rows = confident.nonzero()[:, 0]  # (M,); the one wait for the device, for it decides the mean
    if not len(rows):
        return logits_strong[:0].sum()  # 0 whatever the logits, and in the graph
    chosen = logits_strong[rows].softmax(1)  # (M, C)
    histogram = counts(chosen.argmax(1), chosen.shape[1]) / len(chosen)
    wanted = _balanced(running.probabilities, running.histogram)
    found = _balanced(chosen.mean(0), histogram)
    return (wanted * torch.log(found + 1e-12)).sum()


def _balanced(probabilities: Tensor, histogram: Tensor) -> Tensor:
    """Return norm(probabilities / histogram), both (C,)."""
    inverse = 1.0 / histogram
    # a running bin that nothing falls into is not 0 but shrinks until its inverse overflows
    ratio = probabilities * inverse.masked_fill(inverse.isinf(), 0.0)
    return ratio / ratio.sum()


class FreeMatch(Objective):
    """FreeMatch.

    Args:
        task: what it is told.
        momentum: l.
        fairness_weight: w_f; the official configuration of CIFAR-100 with 400 labels has 0.001.
        clip: greatest running threshold; None for no limit.
        unlabelled_weight: lambda_u.
    """

    sees = SemiBatch

    threshold: Tensor
    probabilities: Tensor
    histogram: Tensor

    def __init__(
        self,
        task: Task,
        *,
        momentum: float = 0.999,
        fairness_weight: float = 0.01,
        clip: float | None = None,
        unlabelled_weight: float = 1.0,
    ) -> None:
        super().__init__(task)
        self.pseudo_labels = PseudoLabelFigures(task)
        refuse_outside(
            momentum=(momentum, 0.0, 1.0),
            fairness_weight=(fairness_weight, 0.0, float("inf")),
            clip=(1.0 if clip is None else clip, 0.0, 1.0),
            unlabelled_weight=(unlabelled_weight, 0.0, float("inf")),
        )
        self.momentum, self.clip = momentum, clip
        self.fairness_weight, self.unlabelled_weight = fairness_weight, unlabelled_weight
        uniform = torch.full((task.classes,), 1.0 / task.classes)
        self.register_buffer("threshold", uniform[0].clone())
        self.register_buffer("probabilities", uniform.clone())
        self.register_buffer("histogram", uniform.clone())

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its three parts, and the figures of the pseudo-labels."""
        labelled, weak, strong = predictions(
            network, batch.images, batch.weak, *batch.strong.unbind(1)
        )
        running = self._follow(weak)
        highest, labels = confidence(weak)
        confident = highest >= adaptive_thresholds(running)[labels]

        loss_labelled = F.cross_entropy(labelled, gather(batch.labels))
        loss_unlabelled = masked_cross_entropy(strong, labels, confident)
        loss_fairness = fairness(strong, confident, running)
        return {
            "loss": loss_labelled
            + self.unlabelled_weight * loss_unlabelled
            + self.fairness_weight * loss_fairness,
            "loss_labelled": loss_labelled.detach(),
            "loss_unlabelled": loss_unlabelled.detach(),
            "loss_fairness": loss_fairness.detach(),
            "threshold": running.threshold.clone(),
        } | self.pseudo_labels.figures(labels, confident, batch.ids)

    def _follow(self, logits_weak: Tensor) -> Running:
        running = Running(self.threshold, self.probabilities, self.histogram)
        new = updated(running, logits_weak, self.momentum, clip=self.clip)
        for own, value in zip(running, new, strict=True):
            own.copy_(value)
        return running
