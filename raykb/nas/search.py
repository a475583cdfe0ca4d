"""A search as the engine trains it: one step moves the weights, then the architecture."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from raykb.engine.assemble import evaluated, evaluating, filled
from raykb.engine.loop import Evaluated, Evaluation, Feed, Training, Worker
from raykb.engine.objective import Batch, Objective, Terms
from raykb.engine.optim import scheduled, updater
from raykb.engine.recipe import Lengths, Recipe
from raykb.nas.bilevel import Bilevel, SearchRecipe
from raykb.nas.derive import derive
from raykb.nas.genotype import Genotype, SearchSpace
from raykb.nas.samplers import Sampler
from raykb.nas.supernet import Architecture, ChosenNetwork, choices_of_genotype, expected_cost


class SearchBatch(NamedTuple):
    """What a step of the search sees.

    Attributes:
        weights: what the objective sees of D_w.
        architecture: what it sees of D_a; None in the warm-up.
    """

    weights: Batch
    architecture: Batch | None


class SearchFeeds(NamedTuple):
    """What gives the batches of D_w and of D_a (:func:`raykb.nas.bilevel.halves`)."""

    weights: Feed
    architecture: Feed

    def batches(
        self, objective: Objective, worker: Worker, warmup_steps: int, steps: int, start: int
    ) -> Iterator[SearchBatch]:
        """Yield what steps start, start + 1, … see; D_a is begun when the warm-up is over."""
        learned = max(0, start - warmup_steps)  # steps of the architecture that are done
        weights = self.weights.batches(start, worker, steps)
        architecture = self.architecture.batches(learned, worker, max(0, steps - warmup_steps))
        try:
            for step in range(start, steps):
                fields = next(weights)
                more = next(architecture) if step >= warmup_steps else None
                yield SearchBatch(
                    filled(objective, fields), None if more is None else filled(objective, more)
                )
        finally:
            self.weights.close()
            self.architecture.close()

    def figures(self) -> dict[str, float]:
        """Return figures of what runs beside."""
        return self.weights.figures() | self.architecture.figures()


def search_training(
    worker: Worker,
    *,
    network: ChosenNetwork,
    objective: Objective,
    architecture: Architecture,
    sampler: Sampler,
    space: SearchSpace,
    feeds: SearchFeeds | None,
    optimizer: Callable[..., Optimizer],
    schedule: Callable[[float], float],
    recipe: Recipe,
    lengths: Lengths,
    search: SearchRecipe,
    steps_per_epoch: int,
    evaluations: Mapping[str, Evaluation],
    seed: int,
) -> Training:
    """Return the training of a supernet and its architecture, for :func:`raykb.engine.loop.fit`.

    A step has two optimizers' steps in it, so ``Training.step`` makes both, and ``update`` has
    nothing left to do. What is evaluated is the derived architecture with the weights that it
    shares with all others; figures of the search stand beside, as ``valid/search/…``, and its
    genotype among the details. The part ``model`` of the state is the supernet's weights, under
    the names that they have in derived networks.

    Args:
        worker: its place; a search has a device of its own, searches run side by side.
        network: the supernet; its initial weights are a function of the seed.
        objective: what both halves learn by; it was told of ``network``.
        architecture: alpha.
        sampler: how architectures are drawn.
        space: what operations there are.
        feeds: of the two halves of the cases; None in a rehearsal.
        optimizer: ``optimizer(model=…)`` makes the weights'.
        schedule: of the weights' learning rate.
        recipe: how weights are trained.
        lengths: the recipe in steps, each of one batch of either half.
        search: how the architecture is.
        steps_per_epoch: by which warm-up and temperature are counted.
        evaluations: each gives its figures the name of its own, in front; ``""`` gives none.
        seed: of the draws.

    Raises:
        ValueError: several workers are to share it, or weights are to be averaged.
    """
    _check(worker, recipe, search, lengths, steps_per_epoch)
    bilevel = Bilevel(
        network.to(worker.device),
        objective.to(worker.device),
        architecture,
        sampler,
        space=space,
        recipe=search,
        seed=seed,
        steps_per_epoch=steps_per_epoch,
        precision="bf16" if recipe.precision == "bf16" else "fp32",
    )
    stepper = optimizer(model=bilevel.learner)
    scheduler = scheduled(stepper, schedule, steps=lengths.steps, warmup_steps=lengths.warmup)
    move_weights = updater(
        bilevel.learner.parameters(),
        stepper,
        scheduler,
        clip_norm=recipe.clip_norm,
        after_step=lambda step: objective.after_step(network, step),
    )

    def batches(start: int) -> Iterator[SearchBatch]:
        if feeds is None:
            raise ValueError("feeds: None, which can be rehearsed but not trained; give two")
        return feeds.batches(objective, worker, bilevel.warmup_steps, lengths.steps, start)

    return Training(
        step=functools.partial(_step, bilevel, move_weights),
        update=lambda step: feeds.figures() if feeds else {},
        batches=batches,
        steps=lengths.steps,
        parts={
            "model": network.supernet,
            "objective": objective,
            "optimizer": stepper,
            "scheduler": scheduler,
            "architecture": architecture,
            "architecture_optimizer": bilevel.optimizer,
            "sampler": sampler,
        },
        evaluate=functools.partial(_evaluate, bilevel, evaluations),
        save_every=lengths.save_every,
        log_every=lengths.log_every,
        evaluate_every=lengths.evaluate_every,
    )


def search_figures(
    architecture: Architecture, genotype: Genotype, costs: torch.Tensor
) -> dict[str, float]:
    """Return what is known of a search without any image.

    ``entropy_…`` by type of cell, in nats; ``expected_cost``, a share of the dearest network's;
    ``identity_share`` of the derived edges (a search that collapses ends in identities); and
    ``genotype``, the first 52 bits of its hash as a number, which a tracker can plot: it changes
    when the derived architecture does.
    """
    entropies = {f"entropy_{kind}": nats for kind, nats in architecture.entropies().items()}
    return entropies | {
        "expected_cost": float(expected_cost(architecture.alpha.detach(), costs)),
        "identity_share": genotype.share("identity"),
        "genotype": float(int(genotype.hash[:13], 16)),
    }


def _step(
    bilevel: Bilevel, move_weights: Callable[[int], dict[str, Any]], batch: SearchBatch, step: int
) -> Terms:
    """Move the weights, then the architecture unless it is still the warm-up."""
    terms = bilevel.weights_gradient(batch.weights, step)
    terms |= {name: torch.as_tensor(value) for name, value in move_weights(step).items()}
    if batch.architecture is not None:
        terms |= bilevel.move_architecture(batch.architecture, step)
    return terms


def _evaluate(bilevel: Bilevel, evaluations: Mapping[str, Evaluation], split: str) -> Evaluated:
    """Evaluate the derived architecture with the shared weights."""
    network, architecture, space = bilevel.network, bilevel.architecture, bilevel.space
    genotype = derive(architecture.probabilities(), space, rule=bilevel.recipe.rule)
    network.choices = choices_of_genotype(genotype, space)
    with evaluating(network):
        found = evaluated(evaluations, network, bilevel.device, split)
    figures = search_figures(architecture, genotype, bilevel.costs)
    own = {f"{split}/search/{name}": value for name, value in figures.items()}
    details = {"genotype": json.loads(genotype.to_json()), "genotype_hash": genotype.hash}
    return Evaluated(found.figures | own, found.details | details)


def _check(
    worker: Worker, recipe: Recipe, search: SearchRecipe, lengths: Lengths, steps_per_epoch: int
) -> None:
    recipe.check_data_parallel(worker.size)
    warmup = search.warmup_epochs * steps_per_epoch
    problems = [
        text
        for wrong, text in (
            (
                worker.size > 1,
                f"workers: {worker.size}, must be 1: a search has one device; run more searches",
            ),
            (
                recipe.ema_decay > 0,
                f"ema_decay: {recipe.ema_decay}, must be 0: shared weights are not averaged",
            ),
            (steps_per_epoch < 1, f"steps_per_epoch: {steps_per_epoch}, must be at least 1"),
            (
                warmup >= lengths.steps,
                f"warmup_epochs: {search.warmup_epochs}, of {steps_per_epoch} steps each, must end "
                f"before the {lengths.steps} steps of the search do",
            ),
        )
        if wrong
    ]
    if problems:
        raise ValueError("; ".join(problems))
