"""What a paper's training is to the engine: an objective, and the step made from it."""

import abc
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Batch = Any
"""What a data source yields; only the objective that it is fed to looks inside."""

Terms = dict[str, Tensor]
"""Scalars of one step. ``loss`` is the one with gradient; the others are detached and logged."""

Step = Callable[[Batch, int], Terms]
"""``step(batch, number)`` has done forward *and* backward of the optimizer step ``number``."""

Precision = Literal["fp32", "bf16"]


class Objective(nn.Module, abc.ABC):
    """The loss of a paper, with all of its own state (teacher, queue, thresholds) as buffers.

    Subclasses are final. ``forward`` reads like the paper's figure and returns :data:`Terms`;
    one ``state_dict`` of the objective is enough to go on with a run.
    """

    @abc.abstractmethod
    def forward(self, model: nn.Module, batch: Batch, step: int) -> Terms:
        """Return the terms of ``batch`` at optimizer step ``step``; ``loss`` is a scalar."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Follow the optimizer step ``step`` (a teacher, a queue); most objectives need not."""
        return


class CrossEntropy(Objective):
    """Mean cross entropy of a classifier over batches ``(images, labels)``.

    Args:
        label_smoothing: share of the target mass spread evenly over all classes (Szegedy et
            al., "Rethinking the Inception architecture", CVPR 2016), in [0, 1).
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing: {label_smoothing}, must be in [0, 1)")
        self.label_smoothing = label_smoothing

    def forward(self, model: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and the share of hits ``top1`` of images (N, C, H, W), labels (N,)."""
        images, labels = batch
        logits = model(images)  # (N, classes)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        top1 = (logits.detach().argmax(1) == labels).float().mean()
        return {"loss": loss, "top1": top1}


def objective_step(
    objective: Objective, model: nn.Module, *, precision: Precision = "fp32"
) -> Step:
    """Return the step that runs ``objective`` on ``model``, forward and backward.

    Args:
        objective: gives the terms.
        model: what is trained.
        precision: ``bf16`` runs the forward pass under autocast; the parameters stay fp32.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: {precision!r}, must be 'fp32' or 'bf16'")
    device = next(model.parameters()).device

    def step(batch: Batch, number: int) -> Terms:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            terms: Terms = objective(model, batch, number)
        if "loss" not in terms:
            raise KeyError(
                f"{type(objective).__name__} returned the terms {sorted(terms)}: 'loss' is missing"
            )
        terms["loss"].backward()
        return {name: term.detach() for name, term in terms.items()}

    return step
