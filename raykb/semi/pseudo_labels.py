"""Pseudo-labels: their figures over the steps, and which images they are of."""

import torch
from torch import Tensor, nn

from raykb.engine.objective import Task, Terms
from raykb.parts.gather import gather

_MEMORY = 0.99  # of the running precision: about the last hundred steps


class PseudoLabelFigures(nn.Module):
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
        self.register_buffer("ids", ids_of(task), persistent=False)
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
        count = counts(labels, self.classes).float()  # (classes,)
        share = count / len(labels)
        figures = {"mask_rate": weights.mean(), "cluster_size": (share * count).sum() - 1.0}
        figures |= {f"class_share/{index}": value for index, value in enumerate(share)}
        if self.knows:
            right = (labels == self.truths[positions(self.ids, gather(ids))]).float()  # (N,)
            correct = (weights * right).mean()
            self.recent.mul_(_MEMORY).add_(torch.stack([correct, weights.mean()]))
            figures["pseudo_label_accuracy"] = right.mean()
            figures["correct_rate"] = correct
            figures["pseudo_label_precision"] = self.recent[0] / self.recent[1].clamp(min=1e-12)
        return figures


def ids_of(task: Task) -> Tensor:
    """Return the ids (U,) of a task's unlabelled images.

    Raises:
        ValueError: it names none, or fewer than two classes.
    """
    if task.ids is None or task.classes < 2:
        raise ValueError(
            f"task: {task.classes} classes, ids {'None' if task.ids is None else 'given'}; a "
            "method with pseudo-labels needs at least 2 classes and the ids of unlabelled images"
        )
    return task.ids


def positions(known: Tensor, ids: Tensor) -> Tensor:
    """Return where ``ids`` (N,) stand among the ascending ``known`` (U,).

    Raises:
        ValueError: one is not among them. A GPU, which no step waits for, stops with that message.
    """
    found = torch.searchsorted(known, ids).clamp(max=len(known) - 1)  # (N,)
    right = known[found] == ids
    told = (
        f"not among the {len(known)} unlabelled images that the task was described with; give the "
        "task the stream's ids"
    )
    if not ids.is_cpu:
        torch._assert_async(right.all(), f"ids: one is {told}")
    elif not right.all():
        raise ValueError(f"ids: {int(ids[~right][0])} is {told}")
    return found


def counts(labels: Tensor, classes: int) -> Tensor:
    """Return how many of ``labels`` (N,) are of each class, (classes,) int64.

    It is ``torch.bincount`` for numbers below ``classes``, without its wait for the greatest.
    """
    none = torch.zeros(classes, dtype=torch.int64, device=labels.device)
    return none.scatter_add_(0, labels, torch.ones_like(labels))
