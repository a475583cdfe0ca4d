"""What a paper's training is to the engine: an objective, and the step made from it."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from raykb.engine.arguments import at_least, check_settings, misfits, refuse, within

Batch = Any
"""What a step sees of the data: the named tuple that the objective asks for, filled."""

Terms = dict[str, Tensor]
"""Scalars of one step. ``loss`` is the one with gradient; the others are detached and logged."""

Step = Callable[[Batch, int], Terms]
"""``step(batch, number)`` has done forward *and* backward of the optimizer step ``number``."""

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, eq=False)
class Task:
    """What an objective is told before it is trained.

    Attributes:
        network: what is trained; an objective copies it if it needs another (a teacher), and looks
            at ``network.width`` for the heads that it puts on its features.
        steps: optimizer steps of the whole training.
        classes: their number; 0 where there are none.
        ids: (U,) int64, all samples without labels, ascending; None where none are known by name.
        truths: (U,) int64, their true labels where these are known, -1 for those of no class: for
            figures alone, no objective learns from them.

    Raises:
        ValueError: there is less than needed, or ids do not ascend, or truths are not as many.
    """

    network: nn.Module
    steps: int
    classes: int = 0
    ids: Tensor | None = None
    truths: Tensor | None = None

    def __post_init__(self) -> None:
        problems = misfits(self, steps=at_least(1), classes=at_least(0))
        ids = self.ids
        if ids is not None and not ids.is_meta and not (ids[1:] > ids[:-1]).all():
            problems.append("ids: must ascend, each once; sort them")
        if self.truths is not None and (ids is None or self.truths.shape != ids.shape):
            problems.append(
                f"truths: {tuple(self.truths.shape)} for ids of shape "
                f"{None if ids is None else tuple(ids.shape)}; must be one for each, or None"
            )
        refuse(problems)


class Objective(nn.Module, abc.ABC):
    """The loss of a paper, with all of its own state (head, teacher, queue, thresholds) inside.

    Subclasses are final. ``forward`` reads like the paper's figure and returns :data:`Terms`;
    one ``state_dict`` of the objective is enough to go on with a run. The constructor takes the
    task first, and the paper's settings by keyword.

    Args:
        task: what it is told.

    Attributes:
        sees: a named tuple type: its fields are what the data must give at each step.
    """

    sees: ClassVar[type[Any]]

    def __init__(self, task: Task) -> None:
        super().__init__()

    @abc.abstractmethod
    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return the terms of ``batch`` at optimizer step ``step``; ``loss`` is a scalar."""

    def after_step(self, network: nn.Module, step: int) -> None:
        """Follow the optimizer step ``step`` (a teacher, a queue); most objectives need not."""
        return


class LabelledBatch(NamedTuple):
    """A rank's share of a step of supervised learning."""

    images: Tensor  # (N, C, H, W) float
    labels: Tensor  # (N,) int64


class CrossEntropy(Objective):
    """Mean cross entropy of a classifier.

    Args:
        task: what it is told.
        label_smoothing: share of the target mass spread evenly over all classes (Szegedy et
            al., "Rethinking the Inception architecture", CVPR 2016), in [0, 1).
    """

    sees = LabelledBatch

    def __init__(self, task: Task, *, label_smoothing: float = 0.0) -> None:
        super().__init__(task)
        self.label_smoothing = label_smoothing
        check_settings(self, label_smoothing=within(0, 1))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and the share of hits ``top1`` of images (N, C, H, W), labels (N,)."""
        images, labels = batch
        logits = network(images)  # (N, classes)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        top1 = (logits.detach().argmax(1) == labels).float().mean()
        return {"loss": loss, "top1": top1}


OBJECTIVES: dict[str, Callable[..., Objective]] = {"cross_entropy": CrossEntropy}


class Learner(nn.Module):
    """A network and its objective as the one module that is optimized, and that ranks share.

    Args:
        network: what stays of a training.
        objective: what goes with it until the end.
    """

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def forward(self, batch: Batch, step: int) -> Terms:
        """Return the objective's terms."""
        terms: Terms = self.objective(self.network, batch, step)
        if "loss" not in terms:
            raise KeyError(
                f"{type(self.objective).__name__} returned the terms {sorted(terms)}: 'loss' is "
                "missing"
            )
        return terms


def learning_step(learner: nn.Module, *, precision: Precision = "fp32") -> Step:
    """Return the step that runs a learner, forward and backward.

    Args:
        learner: a :class:`Learner`, or what wraps one for data parallelism.
        precision: ``bf16`` runs the forward pass under autocast; the parameters stay fp32.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: {precision!r}, must be 'fp32' or 'bf16'")
    device = next(learner.parameters()).device

    def step(batch: Batch, number: int) -> Terms:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            terms: Terms = learner(batch, number)
        terms["loss"].backward()
        return {name: term.detach() for name, term in terms.items()}

    return step
