"""Cross entropy and soft Dice of voxels, at each level that a network has logits for (nnU-Net).

    L     = sum_i w_i (CE(f_i(x), y_i) + 1 - D(f_i(x), y_i))
    D     = mean_k (2 sum_v p_kv y_kv + s) / (sum_v p_kv + sum_v y_kv + s)         k = 1..K-1
    w_i   = 2^-i / sum_j 2^-j,  but 0 for the coarsest of several

Symbols:
    f_i        logits (K, …) of level i, from fine to coarse
    x, y_i     image, and its label at the voxels of level i (the nearest)
    p, y_k     softmax f; where the label is k
    s          keeps classes that are nowhere defined
    v          voxels of one sample, whose D is then averaged; or of the whole batch, of all ranks

Isensee, Jaeger, Kohl, Petersen, Maier-Hein, "nnU-Net: a self-configuring method for deep
learning-based biomedical image segmentation", Nature Methods 18 (2021); Dice after Drozdzal et al.,
"The importance of skip connections in biomedical image segmentation", 2016, arXiv:1608.04117.

Departures:
    - nnU-Net has -D where there is 1 - D here: the gradient is the same, and the loss is MONAI's
      DiceCELoss, which ends at 0 and not at -1.
    - one output alone has the weight 1, where nnU-Net's rule would leave 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import above, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32


class VoxelBatch(NamedTuple):
    """A rank's share of a step of supervised segmentation; in two dimensions without Z."""

    images: Tensor  # (N, C, Z, Y, X) float
    labels: Tensor  # (N, Z, Y, X) int64


def supervision_weights(outputs: int) -> list[float]:
    """Return w_i of each of ``outputs``, from fine to coarse; their sum is 1."""
    if outputs == 1:
        return [1.0]
    halves = [2.0**-level for level in range(outputs - 1)]
    return [*(half / sum(halves) for half in halves), 0.0]


def soft_dice(
    logits: Tensor, labels: Tensor, *, batch: bool = False, smooth: float = 1e-5
) -> Tensor:
    """Return D, a scalar, the background left out.

    Args:
        logits: (N, K, …), K at least 2.
        labels: (N, …) int64, in 0..K-1.
        batch: sums go over the whole batch, of all ranks, instead of each sample.
        smooth: s.
    """
    probabilities = at_least_float32(logits).softmax(1)
    where = torch.zeros_like(probabilities).scatter_(1, labels[:, None], 1.0)
    sums = [
        part[:, 1:].flatten(2).sum(2)  # (N, K-1)
        for part in (probabilities * where, probabilities, where)
    ]
    if batch:
        sums = [gather(part.sum(0, keepdim=True)).sum(0) for part in sums]  # (K-1,)
    both, predicted, true = sums
    return ((2 * both + smooth) / (predicted + true + smooth)).mean()


def at_level(labels: Tensor, logits: Tensor) -> Tensor:
    """Return labels (N, …) at the voxels of coarser logits (N, K, …): those nearest to them."""
    size = logits.shape[2:]
    if labels.shape[1:] == size:
        return labels
    return F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()


class DiceCrossEntropy(Objective):
    """Cross entropy and soft Dice, of equal weight.

    The network returns logits (N, K, …), or several from fine to coarse (deep supervision).

    Args:
        task: what it is told.
        batch_dice: Dice is that of the whole batch, not the mean over its samples.
        smooth: s.
    """

    sees = VoxelBatch

    def __init__(self, task: Task, *, batch_dice: bool = False, smooth: float = 1e-5) -> None:
        super().__init__(task)
        self.batch_dice, self.smooth = batch_dice, smooth
        check_settings(self, smooth=above(0))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and, of the finest level, cross entropy and soft Dice."""
        outputs = network(batch.images)
        levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        entropies, dices = zip(
            *(self._terms(logits, batch.labels) for logits in levels), strict=True
        )
        weights = supervision_weights(len(levels))
        pairs = zip(weights, entropies, dices, strict=True)
        return {
            "loss": torch.stack([w * (entropy + 1 - dice) for w, entropy, dice in pairs]).sum(),
            "cross_entropy": entropies[0].detach(),
            "soft_dice": dices[0].detach(),
        }

    def _terms(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        labels, logits = at_level(labels, logits), at_least_float32(logits)
        dice = soft_dice(logits, labels, batch=self.batch_dice, smooth=self.smooth)
        return F.cross_entropy(logits, labels), dice
