"""Linear probe: how well a linear layer on frozen features tells classes apart.

    min over W, b    1/N sum_i -log softmax(W x_i + b)_{y_i} + lambda/2 |W|^2
    x_i = (f_i - mean) / std,   of the training images

Symbols:
    f_i      features (d,) of training image i = 1..N, y_i its class of C
    W, b     (C, d), (C,), from 0
    lambda   weight decay

The problem is convex, and is solved by L-BFGS over all features at once (strong Wolfe), so there is
no learning rate to choose, no order and no chance: networks are compared, not the probe's training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.engine.arguments import at_least, check_settings
from raykb.engine.loop import Evaluated
from raykb.evaluate.backbone import Features, Judged
from raykb.parts.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A linear layer on frozen features; a section of the config.

    Args:
        weight_decay: lambda.
        iterations: of L-BFGS at most.
    """

    needs: ClassVar[type[Any]] = Backbone
    task: ClassVar[str] = "classification"
    compared: ClassVar[Sequence[str]] = ("top1",)
    weight_decay: float = 1e-3
    iterations: int = 100

    def __post_init__(self) -> None:
        check_settings(self, weight_decay=at_least(0), iterations=at_least(1))

    def __call__(self, judged: Judged) -> Evaluated:
        """Return ``top1`` of the test images, and of the training images, ``train_top1``."""
        probe = self.fitted(judged.train, judged.by.classes)
        return Evaluated({"top1": probe.top1(judged.test), "train_top1": probe.top1(judged.train)})

    def fitted(self, train: Features, classes: int) -> "Probe":
        """Return the layer that tells the classes of training images apart."""
        mean, std = train.rows.mean(0), train.rows.std(0, correction=0)
        std = torch.where(std > 0, std, 1.0)  # what never changes stays 0
        return Probe(mean, std, *self.solved((train.rows - mean) / std, train.labels, classes))

    def solved(self, rows: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Return W (C, d) and b (C,) of rows (N, d) and labels (N,)."""
        weight = rows.new_zeros(classes, rows.shape[1], requires_grad=True)
        bias = rows.new_zeros(classes, requires_grad=True)
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=self.iterations, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            solver.zero_grad()
            with torch.enable_grad():
                loss = F.cross_entropy(rows @ weight.T + bias, labels)
                loss = loss + self.weight_decay / 2 * weight.square().sum()
            loss.backward()
            return loss

        solver.step(objective)
        return weight.detach(), bias.detach()


class Probe(NamedTuple):
    """A linear layer on standardised features."""

    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    weight: Tensor  # (C, d)
    bias: Tensor  # (C,)

    def logits(self, rows: Tensor) -> Tensor:
        """Return logits (N, C) of features (N, d)."""
        return (rows - self.mean) / self.std @ self.weight.T + self.bias

    def top1(self, features: Features) -> float:
        """Return the share of features whose class is found."""
        return float((self.logits(features.rows).argmax(1) == features.labels).double().mean())
