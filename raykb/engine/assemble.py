"""One training put together from its parts."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raykb.engine.loop import Evaluated, Evaluation, Feed, Training, Worker
from raykb.engine.objective import Batch, Learner, Objective, learning_step
from raykb.engine.optim import scheduled, updater
from raykb.engine.recipe import Lengths, Recipe
from raykb.engine.seeding import rng_state, set_rng_state


def assemble(
    worker: Worker,
    *,
    network: nn.Module,
    objective: Objective,
    feed: Feed,
    optimizer: Callable[..., Optimizer],
    schedule: Callable[[float], float],
    recipe: Recipe,
    lengths: Lengths,
    evaluations: Mapping[str, Evaluation],
    on_the_way: Mapping[str, Evaluation] | None = None,
) -> Training:
    """Return the training of ``network`` by ``objective`` over the batches of ``feed``.

    Network and objective are one module to the optimizer and to ranks. The part ``model`` of the
    state is the plain network, with averaged weights if the recipe wants some: what is evaluated
    and walked away with. Then ``trained`` is the one that the optimizer moves; the average begins
    at the initial weights, and buffers (batch norm's statistics) are those of the trained one.

    Args:
        worker: its place; each of several workers takes its share of every batch.
        network: what stays; its initial weights are the same in every worker.
        objective: what it is trained by; it was told of this very network.
        feed: gives the fields that the objective asks for.
        optimizer: ``optimizer(model=…)`` makes one over what requires a gradient.
        schedule: of the learning rate.
        recipe: how to train.
        lengths: the recipe in steps.
        evaluations: each gives its figures the name of its own, in front; ``""`` gives none.
        on_the_way: those of the split ``valid``, every ``evaluate_every`` steps; None for the same.
    """
    recipe.check_data_parallel(worker.size)
    learner = Learner(network, objective).to(worker.device)
    stepper = optimizer(model=learner)
    scheduler = scheduled(stepper, schedule, steps=lengths.steps, warmup_steps=lengths.warmup)
    average = _averaged(network, recipe.ema_decay) if recipe.ema_decay else None
    kept = network if average is None else average.module
    own = {"test": evaluations, "valid": evaluations if on_the_way is None else on_the_way}
    wrapped = learner if worker.size == 1 else DistributedDataParallel(learner)

    def after_step(step: int) -> None:
        objective.after_step(network, step)
        if average is not None:
            average.update_parameters(network)

    def evaluate(split: str) -> Evaluated:
        if worker.rank:
            return Evaluated({})
        with evaluating(kept):
            return evaluated(own[split], kept, worker.device, split)

    update = updater(
        learner.parameters(), stepper, scheduler, clip_norm=recipe.clip_norm, after_step=after_step
    )
    parts: dict[str, Any] = {"model": kept}
    if average is not None:
        parts["trained"] = network
    parts |= {"objective": objective, "optimizer": stepper, "scheduler": scheduler}
    return Training(
        step=learning_step(wrapped, precision="bf16" if recipe.precision == "bf16" else "fp32"),
        update=lambda step: update(step) | feed.figures(),
        batches=lambda start: _batches(feed, objective, worker, start, lengths.steps),
        steps=lengths.steps,
        parts=parts,
        evaluate=evaluate,
        save_every=lengths.save_every,
        log_every=lengths.log_every,
        evaluate_every=lengths.evaluate_every,
    )


def _averaged(network: nn.Module, decay: float) -> AveragedModel:
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
    averaged.requires_grad_(False)
    averaged.n_averaged.fill_(1)  # it begins as a copy, which the first update would make anew
    return averaged


def _batches(
    feed: Feed, objective: Objective, worker: Worker, start: int, stop: int
) -> Iterator[Batch]:
    """Yield the batches of steps start, start + 1, …, and end what the feed has started."""
    try:
        for fields in feed.batches(start, worker, stop):
            yield filled(objective, fields)
    finally:
        feed.close()


def filled(objective: Objective, fields: Mapping[str, Any]) -> Batch:
    """Return the batch that an objective asks for, of the fields that the data give.

    Raises:
        ValueError: one is missing; what there is, is named.
    """
    names = objective.sees._fields
    if missing := [name for name in names if name not in fields]:
        raise ValueError(
            f"{type(objective).__name__} learns from {', '.join(names)}; the data give no "
            f"{', '.join(missing)}, but {', '.join(sorted(fields))}"
        )
    return objective.sees(*(fields[name] for name in names))


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Have a network in evaluation mode, and layers and generators as they were afterwards."""
    training, chance = [module for module in network.modules() if module.training], rng_state()
    network.eval()
    try:
        yield
    finally:
        set_rng_state(chance)
        for module in training:
            module.training = True


def evaluated(
    evaluations: Mapping[str, Evaluation], network: nn.Module, device: torch.device, split: str
) -> Evaluated:
    """Return what several evaluations found, as ``split/figure`` or ``split/name/figure``."""
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, evaluation in evaluations.items():
        found = evaluation(network, device)
        own = f"{split}/{name}/" if name else f"{split}/"
        figures |= {f"{own}{figure}": value for figure, value in found.figures.items()}
        details |= found.details if not name else {name: found.details}
    return Evaluated(figures, details)
