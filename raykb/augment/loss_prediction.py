"""Learning loss for test-time augmentation: which transformation an image wants before it is seen.

Ildoo Kim, Younghoon Kim, Sungwoong Kim, "Learning Loss for Test-Time Augmentation", NeurIPS 2020,
arXiv 2010.11422, and its official code.

    l_a = CE(f(t_a(x)), y)                          loss of the frozen target network, a = 1..A
    s   = softmin(l / tau)                          relative target: only the order in x matters
    p   = softmax(g(x64))                           prediction, of a thumbnail
    L   = mean over (x, a) of (r~_a(p) - r_a(s))^2  ranks, exact and soft (ranks.py)

    choice  = argmax p, or the identity where max p < threshold * p_identity; k times

Symbols:
    x, x64     image, and its thumbnail
    t_a        transformation (raykb/data/candidates.py)
    f, g       target network, and predictor, to (A,)
    tau, T     temperatures of the relative target and of the soft rank

Departures: the soft rank is pairwise by default, where the code has a recurrent network that was
taught to sort (SoDeep), whose weights were not published; ``sorter_steps`` teaches one here. The
prediction at inference is the mean over a thumbnail and its mirror left to right, where the code
mirrors top to bottom by mistake. Samples of one image need not meet in a batch. Equal losses share
a rank, as those of identity and saturation do on grey images; else a constant would decide between
them. Squared differences of ranks up to 0.05 count nothing in the code; here that is an option, for
it lets the first three of twelve change places for free.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from raykb.augment.ranks import ranks, soft_ranks, taught_sorter
from raykb.data.candidates import CANDIDATES, mirrored
from raykb.engine.arguments import above, at_least, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms

NAMES = tuple(CANDIDATES)
IDENTITY = NAMES.index("n")
_SWAPPED = [NAMES.index({"r-20": "r20", "r20": "r-20"}.get(name, name)) for name in NAMES]


def relative_targets(losses: Tensor, temperature: float = 1.0) -> Tensor:
    """Return s (N, A) of losses (N, A): a distribution whose largest entry has the least loss."""
    return (-losses / temperature).softmax(1)


def ranking_loss(ranked: Tensor, targets: Tensor, tolerance: float = 0.0) -> Tensor:
    """Return L; squared differences of ranks up to ``tolerance`` count nothing.

    Args:
        ranked: (N, A) soft ranks of p.
        targets: (N, A) s.
        tolerance: a rank that is nearly right is right; 0.05 in the code (t_easy).
    """
    wrong = (ranked - ranks(targets)).square()
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
        rank_temperature: T, of the pairwise soft rank.
        tolerance: a squared difference of ranks up to it is none; 0.05 in the code.
        sorter_steps: batches that teach a network to sort, which ranks log p in place of the
            pairwise form, as in the code; 0 for that. 1,000 take seconds.
    """

    sees = LossBatch

    def __init__(
        self,
        task: Task,
        *,
        temperature: float = 1.0,
        rank_temperature: float = 0.05,
        tolerance: float = 0.0,
        sorter_steps: int = 0,
    ) -> None:
        super().__init__(task)
        self.temperature, self.rank_temperature = temperature, rank_temperature
        self.tolerance, self.sorter_steps = tolerance, sorter_steps
        above_0 = dict.fromkeys(("temperature", "rank_temperature"), above(0))
        check_settings(self, tolerance=at_least(0), sorter_steps=at_least(0), **above_0)
        self.sorter = taught_sorter(task.classes, sorter_steps) if sorter_steps else None

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, and ``regret``: what the first choice loses more than the best."""
        logits = network(batch.thumbnails)
        probabilities = logits.softmax(1)  # (N, A)
        if self.sorter is None:
            ranked = soft_ranks(probabilities, self.rank_temperature)
        else:
            ranked = self.sorter(logits.log_softmax(1))
        targets = relative_targets(batch.losses, self.temperature)
        loss = ranking_loss(ranked, targets, self.tolerance)
        own = batch.losses.gather(1, probabilities.detach().argmax(1, keepdim=True))
        return {"loss": loss, "regret": (own[:, 0] - batch.losses.amin(1)).mean()}


OBJECTIVES = {"loss_prediction": LossPrediction}
