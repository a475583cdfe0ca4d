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

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.loop import Evaluated
from raykb.evaluate.features import Features


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A linear layer on frozen features; a section of the config.

    Args:
        weight_decay: lambda.
        iterations: of L-BFGS at most.
    """

    weight_decay: float = 1e-3
    iterations: int = 100

    def __post_init__(self) -> None:
        refuse(misfits(self, weight_decay=at_least(0), iterations=at_least(1)))

    def __call__(self, train: Features, test: Features) -> Evaluated:
        """Return ``top1`` of the test images, and of the training images, ``train_top1``."""
        mean, std = train.rows.mean(0), train.rows.std(0, correction=0)
        std = torch.where(std > 0, std, 1.0)  # what never changes stays 0
        seen, asked = ((part.rows - mean) / std for part in (train, test))
        classes = int(torch.cat([train.labels, test.labels]).max()) + 1
        weight, bias = self.solved(seen, train.labels, classes)

        def top1(rows: Tensor, labels: Tensor) -> float:
            return float(((rows @ weight.T + bias).argmax(1) == labels).double().mean())

        return Evaluated({"top1": top1(asked, test.labels), "train_top1": top1(seen, train.labels)})

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
