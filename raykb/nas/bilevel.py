"""The search: weights learn from one half of the cases, the architecture from the other.

    min_alpha E_{a ~ p(alpha)} L_a(w*(alpha), a)       w*(alpha) = argmin_w E_a L_w(w, a)

by turns, to first order (DARTS, arXiv:1806.09055, with xi = 0; SCNAS, arXiv:1906.05956, calls it
stochastic bi-level optimisation). A step of the search is

    1. draw a; move w against the gradient of L_w on a batch of D_w            alpha is frozen
    2. draw a; move alpha by Adam against the gradient of L_a on one of D_a        w is frozen
                                                + lambda |target - E[cost]|

    D_w, D_a   halves of the training cases, never of their patches
    E[cost]    sum over edges of sum_k p_k c_k, as a share of the dearest network's

In the warm-up there is 1. alone, with all operations as likely.

State: weights, alpha, both optimizers, the schedule, what the sampler remembers. A draw is a
function of (seed, step), so no generator is saved.

Departures:
    - learning rates, decay, warm-up and cost term are choices; the paper's are not known.
    - tau's epochs are counted from the end of the warm-up, when it begins to matter.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raykb.engine.arguments import above, among, at_least, check_settings, within
from raykb.engine.objective import Batch, Learner, Objective, Precision, Terms, learning_step
from raykb.engine.seeding import generator
from raykb.nas.derive import RULES
from raykb.nas.genotype import SearchSpace
from raykb.nas.samplers import Draw, Sampler
from raykb.nas.supernet import (
    Architecture,
    ChosenNetwork,
    choices_of_draw,
    cost_table,
    draw_cells,
    expected_cost,
)


@dataclass(frozen=True, kw_only=True)
class SearchRecipe:
    """How an architecture is searched; a section of the config.

    Args:
        warmup_epochs: in which only weights learn.
        alpha_lr: learning rate of alpha.
        alpha_betas: of its Adam.
        alpha_weight_decay: of alpha; DARTS has 1e-3, which outweighed small gradients of it.
        cost_weight: lambda; 0 for none.
        cost_target: what E[cost] is drawn to, in [0, 1].
        rule: by which an architecture is derived, of :data:`raykb.nas.derive.RULES`.
    """

    warmup_epochs: int = 2
    alpha_lr: float = 1e-3
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_weight_decay: float = 0.0
    cost_weight: float = 0.0
    cost_target: float = 0.0
    rule: str = "connectivity"

    def __post_init__(self) -> None:
        check_settings(
            self,
            warmup_epochs=at_least(0),
            alpha_lr=above(0),
            alpha_weight_decay=at_least(0),
            cost_weight=at_least(0),
            cost_target=within(0, 1),
            rule=among(*RULES),
        )


def halves(cases: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Return D_w and D_a, by names of cases: each case, with all its patches, is in one of them.

    The first has one more of an odd number.

    Raises:
        ValueError: there are fewer than two, or one twice.
    """
    names = sorted(cases)
    if len(names) < 2 or len({*names}) < len(names):
        raise ValueError(f"cases: {list(cases)}, must be two or more, each once")
    order = torch.randperm(len(names), generator=generator(seed, "halves")).tolist()
    middle = (len(names) + 1) // 2
    return (
        sorted(names[i] for i in order[:middle]),
        sorted(names[i] for i in order[middle:]),
    )


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Have no parameter of a module require a gradient, and those that did afterwards."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Bilevel:
    """The two halves of a step of the search.

    Args:
        network: w, where it is to be trained.
        objective: L, told of ``network``; what it learns itself, it learns with the weights.
        architecture: alpha.
        sampler: how a is drawn.
        space: what operations there are.
        recipe: how alpha is learned.
        seed: of the draws.
        steps_per_epoch: of the search.
        precision: of forward passes.
    """

    def __init__(
        self,
        network: ChosenNetwork,
        objective: Objective,
        architecture: Architecture,
        sampler: Sampler,
        *,
        space: SearchSpace,
        recipe: SearchRecipe,
        seed: int,
        steps_per_epoch: int,
        precision: Precision = "fp32",
    ) -> None:
        self.network, self.learner = network, Learner(network, objective)
        self.architecture, self.sampler, self.space = architecture, sampler, space
        self.recipe, self.seed, self.steps_per_epoch = recipe, seed, steps_per_epoch
        self.warmup_steps = recipe.warmup_epochs * steps_per_epoch
        self.device, self.precision = next(network.parameters()).device, precision
        self.costs = cost_table(space, network.supernet)
        self.step_of_weights = learning_step(self.learner, precision=precision)
        self.optimizer = torch.optim.Adam(
            architecture.parameters(),
            lr=recipe.alpha_lr,
            betas=recipe.alpha_betas,
            weight_decay=recipe.alpha_weight_decay,
        )

    def weights_gradient(self, batch: Batch, step: int) -> Terms:
        """Have a batch of D_w leave its gradient in the weights; return the objective's terms."""
        alpha = self.architecture.alpha.detach()
        draw = self._draw(
            torch.zeros_like(alpha) if step < self.warmup_steps else alpha, "weights", step
        )
        gates = draw.gates if draw.mixes else None
        self.network.choices = choices_of_draw(draw, gates, device=self.device, watch=False)
        return self.step_of_weights(batch, step)

    def move_architecture(self, batch: Batch, step: int) -> Terms:
        """Move alpha by a batch of D_a; return the loss L_a and the expected cost before.

        Raises:
            FloatingPointError: the gradient is not finite; alpha stays as it was.
        """
        alpha, needs = self.architecture.alpha, self.sampler.needs_gates
        draw = self._draw(alpha.detach(), "architecture", step)
        gates = draw.gates.clone().requires_grad_(needs)
        self.network.choices = choices_of_draw(
            draw, gates if needs else None, device=self.device, watch=True
        )
        with frozen(self.learner), torch.set_grad_enabled(needs), self._autocast():
            loss = self.learner(batch, step)["loss"]
        g = torch.autograd.grad(loss, gates)[0] if needs else torch.zeros_like(gates)
        loss = loss.detach()
        cost = expected_cost(alpha, self.costs)
        penalty = self.recipe.cost_weight * (self.recipe.cost_target - cost).abs()

        gradient = self.sampler.gradient(draw, g, loss.to("cpu"))
        alpha.grad = gradient + torch.autograd.grad(penalty, alpha)[0]
        if not alpha.grad.isfinite().all():
            raise FloatingPointError(
                f"loss_architecture: {float(loss)} at step {step}, whose gradient of alpha is "
                "not finite; lower the learning rate of the weights, or clip their gradient"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss_architecture": loss, "expected_cost": cost.detach()}

    def _draw(self, logits: Tensor, purpose: str, step: int) -> Draw:
        epoch = max(0, step - self.warmup_steps) // self.steps_per_epoch
        numbers = generator(self.seed, purpose, step)
        return draw_cells(self.sampler, logits, self.space, numbers, epoch=epoch)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
