"""LARS: steps as long as the layer allows, so that large batches can take large rates.

You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017, arXiv:1708.03888.

    lambda = eta |w| / (|g| + beta |w|)                                            (6)
    v <- m v + lambda (g + beta w),   w <- w - gamma v

Symbols:
    w, g       weights of a layer and their gradient
    v          momentum
    gamma      learning rate
    eta        trust
    beta, m    weight decay, coefficient of the momentum

Departures: the rate multiplies the momentum when it is used, as in torch and in SimCLR's code
(paper: when it is gathered). Norms and biases have lambda 1 and no decay, as there and in BYOL.
Where one of the lengths is 0, lambda is 1.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from raykb.engine.arguments import refuse_outside


class LARS(Optimizer):
    """LARS.

    A group may say ``adapted: False``: its steps are those of SGD.

    Args:
        params: parameters, or groups of them.
        lr: gamma.
        momentum: m.
        weight_decay: beta.
        trust: eta.

    Raises:
        ValueError: one is below 0, or the momentum above 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapted": True,
        }
        refuse_outside(
            lr=(lr, 0.0, float("inf")),
            momentum=(momentum, 0.0, 1.0),
            weight_decay=(weight_decay, 0.0, float("inf")),
            trust=(trust, 0.0, float("inf")),
        )
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters that have a gradient; return what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, weights: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        moved = gradient.add(weights, alpha=group["weight_decay"])
        if group["adapted"]:
            moved = moved * local_rate(weights, gradient, group["weight_decay"], group["trust"])
        state = self.state[weights]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weights)
        momentum = state["momentum"].mul_(group["momentum"]).add_(moved)
        weights.add_(momentum, alpha=-group["lr"])


def local_rate(weights: Tensor, gradient: Tensor, weight_decay: float, trust: float) -> Tensor:
    """Return lambda, a scalar."""
    length, slope = torch.linalg.vector_norm(weights), torch.linalg.vector_norm(gradient)
    rate: Tensor = trust * length / (slope + weight_decay * length)
    return rate.where((length > 0) & (slope > 0), 1.0)
