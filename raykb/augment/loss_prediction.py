"""Learning loss for test-time augmentation: which transformation an image wants before it is seen.

Ildoo Kim, Younghoon Kim, Sungwoong Kim, "Learning Loss for Test-Time Augmentation", NeurIPS 2020,
arXiv 2010.11422, and its official code.

    l_a = CE(f(t_a(x)), y)                          loss of the frozen target network, a = 1..A
    s   = softmin(l / tau)                          relative target: only the order in x matters
    p   = softmax(g(x64))                           prediction, of a thumbnail
    r_a(v) = 1/A (1/2 + sum_b [v_b > v_a] + 1/2 [v_b = v_a])       rank: 1/A of the largest
    L   = mean over (x, a) of (r~_a(p) - r_a(s))^2

    r~_a(v) = 1/A (1/2 + sum_b sigmoid((v_b - v_a) / T))            pairwise soft rank
    choice  = argmax p, or the identity where max p < threshold * p_identity; k times

Symbols:
    x, x64     image, and its thumbnail
    t_a        transformation (raykb/data/candidates.py)
    f, g       target network, and predictor, to (A,)
    tau, T     temperatures of the relative target and of the soft rank

Departures: the soft rank is pairwise, where the code has a recurrent network that was taught to
sort (SoDeep), whose weights were not published. The prediction at inference is the mean over a
thumbnail and its mirror left to right, where the code mirrors top to bottom by mistake. Samples of
one image need not meet in a batch. Equal losses share a rank, as those of identity and saturation
do on grey images; else a constant would decide between them. Squared differences of ranks up to
0.05 count nothing in the code; here that is an option, for it lets the first three of twelve change
places for free.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from raykb.data.candidates import CANDIDATES, mirrored
from raykb.engine.arguments import above, at_least, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms

NAMES = tuple(CANDIDATES)
IDENTITY = NAMES.index("n")
_SWAPPED = [NAMES.index({"r-20": "r20", "r20": "r-20"}.get(name, name)) for name in NAMES]


def relative_targets(losses: Tensor, temperature: float = 1.0) -> Tensor:
    """Return s (N, A) of losses (N, A): a distribution whose largest entry has the least loss."""
    return (-losses / temperature).softmax(1)


def ranks(values: Tensor) -> Tensor:
    """Return ranks (N, A) from 1/A of the largest value to 1 of the smallest; equals share them."""
    difference = values[:, None, :] - values[:, :, None]  # (N, A, A): v_b - v_a at [a, b]
    return (0.5 + (difference.sign() + 1).sum(2) / 2) / values.shape[1]


def soft_ranks(values: Tensor, temperature: float) -> Tensor:
    """Return r~ (N, A), which has a gradient and is :func:`ranks` as the temperature goes to 0."""
    above_by = values[:, None, :] - values[:, :, None]  # (N, A, A): v_b - v_a at [a, b]
    return (0.5 + (above_by / temperature).sigmoid().sum(2)) / values.shape[1]


def ranking_loss(
    predicted: Tensor, targets: Tensor, *, temperature: float = 0.05, tolerance: float = 0.0
) -> Tensor:
    """Return L of distributions (N, A); differences of squares up to ``tolerance`` count nothing.

    Args:
        predicted: p.
        targets: s.
        temperature: T.
        tolerance: a rank that is nearly right is right; 0.05 in the code (t_easy).
    """
    wrong = (soft_ranks(predicted, temperature) - ranks(targets)).square()
    return wrong.where(wrong > tolerance, torch.zeros_like(wrong)).mean()


@torch.no_grad()
def predicted(network: nn.Module, thumbnails: Tensor) -> Tensor:
    """Return p (N, A): the mean over thumbnails and their mirrors, whose rotations are exchanged.

    Args:
        network: g.
        thumbnails: (N, C, h, w) float, normalised.
    """
    plain, mirror = (
        network(form).float().softmax(1) for form in (thumbnails, mirrored(thumbnails))
    )
    mean: Tensor = (plain + mirror[:, _SWAPPED]) / 2
    return mean


def chosen(probabilities: Tensor, count: int, *, threshold: float = 0.0) -> Tensor:
    """Return the k best transformations of each image, (N, k) int64.

    Args:
        probabilities: p (N, A).
        count: k; the identity may be chosen again, another transformation may not.
        threshold: below this share of the identity's probability, it is the identity.
    """
    left, rows, found = probabilities.clone(), torch.arange(len(probabilities)), []
    for _ in range(count):
        best = left.argmax(1)
        poor = left[rows, best] < threshold * left[:, IDENTITY]
        best = best.masked_fill(poor, IDENTITY)
        found.append(best)
        left[rows, best] = left[rows, best].where(best == IDENTITY, torch.zeros(()).to(left))
    return torch.stack(found, dim=1)


class LossBatch(NamedTuple):
    """Thumbnails of hard images, and the target network's losses after each transformation."""

    thumbnails: Tensor  # (N, C, h, w) float
    losses: Tensor  # (N, A)


class LossPrediction(Objective):
    """Predictor of losses, trained to put transformations into their order.

    Args:
        task: what it is told; its classes are the transformations.
        temperature: tau, of the relative target.
        rank_temperature: T, of the soft rank.
        tolerance: a squared difference of ranks up to it is none; 0.05 in the code.
    """

    sees = LossBatch

    def __init__(
        self,
        task: Task,
        *,
        temperature: float = 1.0,
        rank_temperature: float = 0.05,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__(task)
        self.temperature, self.rank_temperature = temperature, rank_temperature
        self.tolerance = tolerance
        rules = {"temperature": above(0), "rank_temperature": above(0), "tolerance": at_least(0)}
        check_settings(self, **rules)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, and ``regret``: what the first choice loses more than the best."""
        probabilities = network(batch.thumbnails).softmax(1)  # (N, A)
        loss = ranking_loss(
            probabilities,
            relative_targets(batch.losses, self.temperature),
            temperature=self.rank_temperature,
            tolerance=self.tolerance,
        )
        own = batch.losses.gather(1, probabilities.detach().argmax(1, keepdim=True))
        return {"loss": loss, "regret": (own[:, 0] - batch.losses.amin(1)).mean()}


OBJECTIVES = {"loss_prediction": LossPrediction}
