"""Optimizers and schedules by name, and the update that follows each backward pass."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from raykb.engine.lars import LARS
from raykb.engine.layers import layered_groups, parameter_groups


def sgd(
    model: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Return SGD with (Nesterov) momentum over ``model``; norms and biases are not decayed.

    Without momentum ``nesterov`` says nothing.
    """
    groups = parameter_groups(model, weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float,
    final_weight_decay: float | None = None,
    layer_decay: float = 1.0,
) -> Optimizer:
    """Return AdamW over ``model``; norms and biases are not decayed.

    Args:
        model: what is trained.
        lr: of its last layer, and of all others, too, if ``layer_decay`` is 1.
        betas: of the averages of gradient and square.
        weight_decay: at the first step.
        final_weight_decay: at the last one, by a cosine (DINO: from 0.04 to 0.4); None keeps it.
        layer_decay: by what a layer's rate is that of the next (:func:`layered_groups`).
    """
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay: {layer_decay}, must be above 0 and at most 1")
    if layer_decay == 1.0:
        groups = parameter_groups(model, weight_decay)
    else:
        groups = layered_groups(model, weight_decay, lr, layer_decay)
    for group in groups[::2] if final_weight_decay is not None else []:
        group["decays"] = weight_decay, final_weight_decay
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def lars(
    model: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust: float = 0.001,
) -> Optimizer:
    """Return LARS over ``model``; norms and biases are neither adapted nor decayed."""
    weights, rest = parameter_groups(model, weight_decay)
    groups = [weights, rest | {"adapted": False}]
    return LARS(groups, lr, momentum, weight_decay, trust)


def rmsprop(
    model: nn.Module,
    *,
    lr: float,
    alpha: float = 0.9,
    momentum: float = 0.9,
    eps: float = 1e-3,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Return RMSprop over ``model``; norms and biases are not decayed."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.RMSprop(groups, lr=lr, alpha=alpha, momentum=momentum, eps=eps)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "lars": lars,
}


class NamedOptimizer:
    """The state of an optimizer keyed by the names of the parameters, not by their positions.

    So a state saved by one partition of a model fits any other. Groups are matched by position:
    build them by the same rule everywhere (:func:`parameter_groups` makes two, even if empty).

    Args:
        optimizer: what is saved and restored.
        parameters: names and parameters, as ``module.named_parameters()`` gives them.

    Raises:
        ValueError: a parameter of the optimizer has no name.
    """

    def __init__(self, optimizer: Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]):
        self.optimizer = optimizer
        self._names = {id(parameter): name for name, parameter in parameters}
        shapes = [
            tuple(parameter.shape)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) not in self._names
        ]
        if shapes:
            raise ValueError(
                f"parameters: none named for {len(shapes)} of the optimizer's, of shapes {shapes}; "
                "give named_parameters() of the module that the optimizer was built for"
            )

    def _ordered(self) -> list[str]:
        """Return the names in the order in which torch numbers the parameters."""
        groups = self.optimizer.param_groups
        return [self._names[id(parameter)] for group in groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return ``state`` by name of the parameter, and the settings of the ``groups``."""
        names, plain = self._ordered(), self.optimizer.state_dict()
        state = {names[number]: own for number, own in plain["state"].items()}
        groups = [
            {name: value for name, value in group.items() if name not in ("params", "param_names")}
            for group in plain["param_groups"]
        ]
        return {"state": state, "groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take over a state of :meth:`state_dict`; names that are not here are passed over.

        Raises:
            ValueError: the number of groups is another.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        if len(groups) != len(state_dict["groups"]):
            raise ValueError(
                f"groups: {len(state_dict['groups'])} were saved and there are {len(groups)}; "
                "build the optimizer by the same rule as in the run that was saved"
            )
        state = {
            number: state_dict["state"][name]
            for number, name in enumerate(self._ordered())
            if name in state_dict["state"]
        }
        settings = zip(groups, state_dict["groups"], strict=True)
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": [group | saved for group, saved in settings]}
        )


def constant() -> Callable[[float], float]:
    """Return the schedule that keeps the learning rate."""
    return lambda progress: 1.0


def cosine() -> Callable[[float], float]:
    """Return the schedule (1 + cos(pi t)) / 2 (Loshchilov, Hutter, ICLR 2017, eq. 5)."""
    return lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_7_16() -> Callable[[float], float]:
    """Return the schedule cos(7 pi t / 16), which ends at 0.195 (Sohn et al., NeurIPS 2020)."""
    return lambda progress: math.cos(7.0 * math.pi * progress / 16.0)


def multi_step(
    *, milestones: tuple[float, ...] = (1 / 3, 2 / 3, 8 / 9), factor: float = 0.1
) -> Callable[[float], float]:
    """Return the schedule that multiplies by ``factor`` at each milestone, a share of the run."""
    return lambda progress: factor ** sum(progress >= milestone for milestone in milestones)


def poly(*, power: float = 0.9) -> Callable[[float], float]:
    """Return the schedule (1 - t)^power (Chen et al., DeepLab, 2016, arXiv:1606.00915)."""
    return lambda progress: (1.0 - progress) ** power


SCHEDULES: dict[str, Callable[..., Callable[[float], float]]] = {
    "constant": constant,
    "cosine": cosine,
    "cosine_7_16": cosine_7_16,
    "multi_step": multi_step,
    "poly": poly,
}


def scheduled(
    optimizer: Optimizer,
    schedule: Callable[[float], float],
    *,
    steps: int,
    warmup_steps: int = 0,
) -> LRScheduler:
    """Return a scheduler that is stepped once per optimizer step.

    The rate climbs in ``warmup_steps`` equal steps to the optimizer's own and then follows
    ``schedule``, a factor of the progress in [0, 1) over all ``steps``. A group that has
    ``decays`` has its weight decay climb from the first of the two to the second by a cosine.
    """
    if not 0 <= warmup_steps < max(steps, 1):
        raise ValueError(
            f"warmup_steps: {warmup_steps}, must be at least 0 and below the {steps} steps"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return schedule(step / steps)

    return _Scheduler(optimizer, factor, steps)


class _Scheduler(LambdaLR):
    """Sets the rates of the next step, and the weight decay of those groups that have two."""

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], steps: int) -> None:
        self._steps = steps
        super().__init__(optimizer, factor)

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        passed = 1.0 - cosine()(min(self.last_epoch / self._steps, 1.0))
        for group in self.optimizer.param_groups:
            if decays := group.get("decays"):
                first, last = decays
                group["weight_decay"] = first + passed * (last - first)


def updater(
    parameters: Iterable[nn.Parameter],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    *,
    clip_norm: float | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Callable[[int], dict[str, Any]]:
    """Return ``update(step)``: clip the gradient, step optimizer and schedule, clear gradients.

    Args:
        parameters: what is clipped, together.
        optimizer: is stepped, then its gradients are cleared.
        scheduler: is stepped after the optimizer.
        clip_norm: largest global 2-norm of the gradient; None leaves the gradient alone.
        after_step: is called last, with the step's number (an objective's ``after_step``).
    """
    if clip_norm is not None and not clip_norm > 0.0:
        raise ValueError(f"clip_norm: {clip_norm}, must be above 0, or null for no clipping")
    parameters = list(parameters)

    def update(step: int) -> dict[str, Any]:
        figures: dict[str, Any] = {"lr": optimizer.param_groups[-1]["lr"]}
        if clip_norm is not None:
            figures["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        if after_step is not None:
            after_step(step)
        return figures

    return update
