"""What a step of semi-supervised training sees, and what a method has to know of the task."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raykb.engine.arguments import at_least, misfits, refuse


class SemiBatch(NamedTuple):
    """One rank's share of a step."""

    images: Tensor  # (B, C, H, W) float, weak views of labelled images
    labels: Tensor  # (B,) int64
    weak: Tensor  # (N, C, H, W) float, views of unlabelled images
    strong: Tensor  # (S N, C, H, W) float, S other views of the same images, one after the other
    ids: Tensor  # (N,) int64, which images these are


@dataclass(frozen=True, eq=False)
class Task:
    """What a method is told before it is trained.

    Attributes:
        classes: their number.
        steps: optimizer steps of the whole training.
        ids: (U,) int64, all unlabelled images, ascending.
        truths: (U,) int64, their true labels where these are known: for figures alone, no method
            learns from them.

    Raises:
        ValueError: there is less than needed, or ids do not ascend, or truths are not as many.
    """

    classes: int
    steps: int
    ids: Tensor
    truths: Tensor | None = None

    def __post_init__(self) -> None:
        problems = misfits(self, classes=at_least(2), steps=at_least(1))
        if not (self.ids[1:] > self.ids[:-1]).all():
            problems.append("ids: must ascend, each once; sort them")
        if self.truths is not None and self.truths.shape != self.ids.shape:
            problems.append(
                f"truths: {tuple(self.truths.shape)} for ids of shape {tuple(self.ids.shape)}; "
                "must be one for each, or None"
            )
        refuse(problems)


def positions(known: Tensor, ids: Tensor) -> Tensor:
    """Return where ``ids`` (N,) stand among the ascending ``known`` (U,).

    Raises:
        ValueError: one is not among them.
    """
    found = torch.searchsorted(known, ids).clamp(max=len(known) - 1)  # (N,)
    strange = ids[known[found] != ids]
    if len(strange):
        raise ValueError(
            f"ids: {int(strange[0])} is not among the {len(known)} unlabelled images that the task "
            "was described with; give the task the stream's ids"
        )
    return found


def check(**values: tuple[float, float, float]) -> None:
    """Raise ValueError that names every setting outside its range.

    Args:
        values: by name the value, the least and the greatest that are allowed.
    """
    problems = [
        f"{name}: {value}, must be in {low:g}..{high:g}"
        for name, (value, low, high) in values.items()
        if not low <= value <= high
    ]
    if problems:
        raise ValueError("; ".join(problems))
