"""What all methods have in common as objectives: what they are told, and what they report."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from raykb.engine.objective import Objective, Terms
from raykb.parts.gather import gather
from raykb.semi.batch import Task, positions

_MEMORY = 0.99  # of the running precision: about the last hundred steps


class Method(Objective):
    """A method of semi-supervised learning, over batches :class:`raykb.semi.batch.SemiBatch`.

    Its terms are those of the whole batch, on every rank.

    Args:
        task: what it is told.

    Attributes:
        unlabelled: whether it looks at unlabelled images at all.
        views: strong views of each that it takes.
    """

    unlabelled: ClassVar[bool] = True
    views: int = 1

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.classes = task.classes
        self.watch = Watch(task)

    def network(self, classifier: nn.Module, seed: int) -> nn.Module:
        """Return what is trained: the classifier, and what a method puts on it."""
        return classifier


class Watch(nn.Module):
    """Figures of pseudo-labels, to be seen over the steps of a run.

    - ``mask_rate``: mean weight of the unlabelled samples in the loss.
    - ``cluster_size``: how many others of the batch share a sample's pseudo-label, on average.
    - ``class_share/3``: share of the pseudo-labels that are of class 3.

    And where the true labels are known:

    - ``pseudo_label_accuracy``: share of all pseudo-labels that are right.
    - ``correct_rate``: mean weight of those that are right, wrong ones counting as 0.
    - ``pseudo_label_precision``: share of the weight that is on right ones, of about the last
      hundred steps, for a single step may have no weight at all; 0 before there was any.
    """

    ids: Tensor
    truths: Tensor
    recent: Tensor

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.classes = task.classes
        self.knows = task.truths is not None
        truths = torch.empty(0) if task.truths is None else task.truths
        self.register_buffer("ids", task.ids, persistent=False)
        self.register_buffer("truths", truths, persistent=False)
        self.register_buffer("recent", torch.zeros(2, dtype=torch.float64))

    @torch.no_grad()
    def figures(self, labels: Tensor, weights: Tensor, ids: Tensor) -> Terms:
        """Return the figures of pseudo-labels (N,) with weights (N,) over all ranks.

        The image that is seen in place of a broken one is judged by the broken one's true label.

        Args:
            labels: over all ranks.
            weights: over all ranks.
            ids: this rank's.
        """
        weights = weights.float()
        counts = torch.bincount(labels, minlength=self.classes).float()  # (classes,)
        share = counts / len(labels)
        figures = {"mask_rate": weights.mean(), "cluster_size": (share * counts).sum() - 1.0}
        figures |= {f"class_share/{index}": value for index, value in enumerate(share)}
        if self.knows:
            right = (labels == self.truths[positions(self.ids, gather(ids))]).float()  # (N,)
            correct = (weights * right).mean()
            self.recent.mul_(_MEMORY).add_(torch.stack([correct, weights.mean()]))
            figures["pseudo_label_accuracy"] = right.mean()
            figures["correct_rate"] = correct
            figures["pseudo_label_precision"] = self.recent[0] / self.recent[1].clamp(min=1e-12)
        return figures
