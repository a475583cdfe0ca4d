"""FlexMatch: a threshold for each class, lower for classes that are learned less yet.

Zhang, Wang, Hou, Wu, Wang, Okumura, Shinozaki, "FlexMatch: Boosting Semi-Supervised Learning with
Curriculum Pseudo Labeling", NeurIPS 2021, arXiv:2110.08263.

    L       = L_s + lambda_u L_u
    L_u     = 1/N sum_i [m_i >= tau(y_i)] CE(f(A(u_i)), y_i)
    tau(c)  = tau beta_c / (2 - beta_c)                                the convex map of beta
    beta_c  = sigma_c / max(max_c' sigma_c', U - sum_c' sigma_c')      with warm-up; without it
                                                                       sigma_c / max_c' sigma_c'
    sigma_c = how many unlabelled images were last learned as class c

Symbols:
    u_i        unlabelled image, i = 1..N, of U in all; an image is learned as class y_i when its
               m_i passes tau, and stays so until it is learned as another
    m_i, y_i   highest probability of the weak view and its class, without gradient
    f, A       network, to logits (C,); strong view
    tau        threshold of a class that is learned best

State: ``selected`` (U,), the class that each unlabelled image was last learned as, or -1.

Departures:
    - none in the loss. As in the official code, a step's thresholds come of the steps before it: at
      the first step beta is 0, and so are all thresholds.
    - learned classes are those of all ranks (official code: each rank has its own).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.gather import gather
from raykb.semi.batch import SemiBatch
from raykb.semi.consistency import confidence, masked_cross_entropy, predictions
from raykb.semi.pseudo_labels import PseudoLabelFigures, counts, positions


def learning_status(selected: Tensor, classes: int, *, warm_up: bool = True) -> Tensor:
    """Return beta (C,) in [0, 1] of the learned classes (U,), -1 for none.

    Without ``warm_up`` the images that are not learned yet do not hold beta down.
    """
    sigma = counts(selected + 1, classes + 1)  # (1 + C,)
    most = (sigma if warm_up else sigma[1:]).max()
    return sigma[1:] / most.clamp(min=1)


def flexible_thresholds(status: Tensor, threshold: float) -> Tensor:
    """Return tau(c), (C,), for beta (C,)."""
    return threshold * status / (2.0 - status)


class FlexMatch(Objective):
    """FlexMatch.

    Args:
        task: what it is told.
        threshold: tau.
        warm_up: whether images that are not learned yet hold the thresholds down.
        unlabelled_weight: lambda_u.
    """

    sees = SemiBatch

    selected: Tensor

    def __init__(
        self,
        task: Task,
        *,
        threshold: float = 0.95,
        warm_up: bool = True,
        unlabelled_weight: float = 1.0,
    ) -> None:
        super().__init__(task)
        self.pseudo_labels = PseudoLabelFigures(task)
        refuse_outside(
            threshold=(threshold, 0.0, 1.0),
            unlabelled_weight=(unlabelled_weight, 0.0, float("inf")),
        )
        self.threshold, self.unlabelled_weight = threshold, unlabelled_weight
        self.warm_up = warm_up
        self.register_buffer("selected", torch.full_like(self.pseudo_labels.ids, -1))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its two parts, and the figures of the pseudo-labels."""
        labelled, weak, strong = predictions(
            network, batch.images, batch.weak, *batch.strong.unbind(1)
        )
        highest, labels = confidence(weak)
        status = learning_status(self.selected, weak.shape[1], warm_up=self.warm_up)
        confident = highest >= flexible_thresholds(status, self.threshold)[labels]
        self._learn(highest, labels, gather(batch.ids))

        loss_labelled = F.cross_entropy(labelled, gather(batch.labels))
        loss_unlabelled = masked_cross_entropy(strong, labels, confident)
        return {
            "loss": loss_labelled + self.unlabelled_weight * loss_unlabelled,
            "loss_labelled": loss_labelled.detach(),
            "loss_unlabelled": loss_unlabelled.detach(),
            "threshold": flexible_thresholds(status, self.threshold).mean(),
        } | self.pseudo_labels.figures(labels, confident, batch.ids)

    def _learn(self, highest: Tensor, labels: Tensor, ids: Tensor) -> None:
        learned, count = highest >= self.threshold, len(self.selected)
        # what is not learned goes where it is cut off: to choose rows would wait for the device
        places = positions(self.pseudo_labels.ids, ids).where(learned, count)
        self.selected.copy_(F.pad(self.selected, (0, 1)).index_put_((places,), labels)[:count])
