"""SAOL: an output layer of attention and class evidence, which learns from what was pasted where.

Kim, Baek, Kim, "Spatially Attentive Output Layer for Image Classification", CVPR 2020,
arXiv:2004.07570. The layer itself, to A, Y and yhat, is in ``raykb/parts/spatial_output.py``.

    L     = L_SL + w_1 L_SS1 + w_2 L_SS2 + w_3 L_SD
    L_SL  = -sum_k t_k log yhat_k
    L_SS1 = mean over ij of BCE(Phat_ij, P_ij)
    L_SS2 = sum_ij P_ij KL(Y'_ij || Y^d_ij) / sum_ij P_ij            0 where P is 0 everywhere
    L_SD  = KL(yhat || yhat^G) + beta CE(yhat^G, t)                  no gradient of yhat in KL

Symbols:
    x', d    mixed image, and its donor as it was: what x' shows where P is 1
    t        share of each class in x' (K,)
    P        (h, w) of the grid of the last maps: 1 where at least half of a cell was pasted
    Phat     sigmoid of a third branch like that of A, for the training alone
    Y', Y^d  class evidence (K, h, w) of x' and of d, at the same places
    yhat^G   softmax of the linear head

Both labels come of the mixing's mask, as CutMix has it: with ``cutout`` a donor is a black image.
What is not mixed has P = 0, which L_SS1 learns, too.

State: the branch of Phat. Both output layers are the network's (``spatially_attentive``), so that
what remains of a training has either.

Reconstruction, for the paper's text was not at hand: the forms of L_SS1 and L_SS2, which of Y' and
Y^d gets gradient (``detach_donor``), beta, and all weights being 1. Donors pass the network a
second time, with batch norm by their own batch and without a trace in its running statistics; but
not where nothing is pasted, or L_SS2 has no weight, and so is 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import at_least, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import WithEvidence, require
from raykb.parts.batch_norm import statistics_kept
from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32, in_float32
from raykb.parts.spatial_output import Evidence, averaged, log_mixture, place_scores
from raykb.recognition.batch import MixedBatch


def pasted_cells(masks: Tensor, image: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Return P, (N, 1, h, w).

    Args:
        masks: (N, 1, H or 1, W or 1), 1 where an image is its own.
        image: its size H, W.
        grid: h, w.
    """
    pasted = 1.0 - masks.float().expand(-1, -1, *image)
    return (averaged(pasted, grid) >= 0.5).float()


@in_float32
def output_loss(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return L_SL of log yhat (N, K) and t (N, K); no softmax is taken."""
    return -(targets * log_probabilities).sum(1).mean()


@in_float32
def mask_loss(scores: Tensor, pasted: Tensor) -> Tensor:
    """Return L_SS1 of Phat before its sigmoid and P, (N, 1, h, w) both."""
    return F.binary_cross_entropy_with_logits(scores, pasted.to(scores))


@in_float32
def donor_loss(classes: Tensor, donors: Tensor, pasted: Tensor) -> Tensor:
    """Return L_SS2, 0 where nothing is pasted.

    Args:
        classes: log Y', (N, K, h, w).
        donors: log Y^d, likewise.
        pasted: P, (N, 1, h, w).
    """
    divergences = (classes.exp() * (classes - donors)).sum(1, keepdim=True)  # (N, 1, h, w)
    return (pasted * divergences).sum() / pasted.sum().clamp(min=1.0)


@in_float32
def distillation_loss(logits: Tensor, log_probabilities: Tensor) -> Tensor:
    """Return KL(yhat || yhat^G) of the linear head's logits and log yhat, (N, K) both."""
    wanted = log_probabilities.detach()
    return F.kl_div(logits.log_softmax(1), wanted, reduction="batchmean", log_target=True)


class SAOL(Objective):
    """SAOL.

    Args:
        task: what it is told; its network must have a spatial output layer.
        mask_weight: w_1.
        donor_weight: w_2.
        distillation_weight: w_3.
        label_weight: beta.
        detach_donor: whether Y^d gets no gradient.
        mask_width: channels of the hidden layer of the branch of Phat.
    """

    sees = MixedBatch

    def __init__(
        self,
        task: Task,
        *,
        mask_weight: float = 1.0,
        donor_weight: float = 1.0,
        distillation_weight: float = 1.0,
        label_weight: float = 0.5,
        detach_donor: bool = True,
        mask_width: int = 64,
    ) -> None:
        super().__init__(task)
        self.mask_weight, self.donor_weight = mask_weight, donor_weight
        self.distillation_weight, self.label_weight = distillation_weight, label_weight
        self.detach_donor, self.mask_width = detach_donor, mask_width
        weights = ("mask_weight", "donor_weight", "distillation_weight", "label_weight")
        positive = dict.fromkeys(weights, at_least(0))
        check_settings(self, **positive, mask_width=at_least(1))
        network = require(task.network, WithEvidence, "saol").requires_grad_(True)  # both layers
        self.mask = place_scores(network.map_width, mask_width, bias=True)
        self.head_params = sum(each.numel() for each in network.spatial.parameters())
        self.linear_params = (network.width + 1) * task.classes

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its parts, hits of both heads, and how many parameters these have."""
        seen: Evidence = require(network, WithEvidence, "saol").evidence(batch.images)
        mixture = log_mixture(seen.attention, seen.classes)  # (N, K)
        pasted = pasted_cells(batch.masks, batch.images.shape[2:], seen.maps.shape[2:])
        donors = self._classes(network, batch.donors) if self._asks(pasted) else seen.classes
        distilled = distillation_loss(seen.logits, mixture)
        labels = F.cross_entropy(at_least_float32(seen.logits), batch.targets)
        parts = {
            "loss_output": output_loss(mixture, batch.targets),
            "loss_mask": mask_loss(self.mask(seen.maps), pasted),
            "loss_donor": donor_loss(gather(seen.classes), gather(donors), gather(pasted)),
            "loss_distillation": distilled + self.label_weight * labels,
        }
        weights = (1.0, self.mask_weight, self.donor_weight, self.distillation_weight)
        terms = zip(weights, parts.values(), strict=True)
        loss = torch.stack([weight * part for weight, part in terms]).sum()
        logged = {name: part.detach() for name, part in parts.items()}
        return {"loss": loss} | logged | self._figures(seen, mixture, batch.targets)

    def _asks(self, pasted: Tensor) -> bool:
        """Say whether donors matter: a wait for the device, which saves a third of a step."""
        return self.donor_weight > 0 and bool(pasted.any())

    def _classes(self, network: nn.Module, donors: Tensor) -> Tensor:
        """Return log Y^d, (N, K, h, w)."""
        with_gradient = torch.is_grad_enabled() and not self.detach_donor
        with torch.set_grad_enabled(with_gradient), statistics_kept(network):
            seen: Evidence = require(network, WithEvidence, "saol").evidence(donors)
        return seen.classes

    def _figures(self, seen: Evidence, mixture: Tensor, targets: Tensor) -> Terms:
        labels, said = targets.argmax(1), {"top1": mixture, "top1_linear": seen.logits}
        hits = {name: (of.detach().argmax(1) == labels).float() for name, of in said.items()}
        counts = {"head_params": self.head_params, "linear_params": self.linear_params}
        return {name: hit.mean() for name, hit in hits.items()} | {
            name: mixture.detach().new_full((), count) for name, count in counts.items()
        }
