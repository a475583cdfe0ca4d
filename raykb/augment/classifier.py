"""Train a classifier under an augmentation: the theta of a search, and its final comparison."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raykb.augment.augmentations import Augmentation
from raykb.config import build
from raykb.data.batches import shuffled, viewed
from raykb.data.images import ImageSet
from raykb.data.views import View
from raykb.engine.loop import Training, Worker
from raykb.engine.objective import CrossEntropy, objective_step
from raykb.engine.optim import OPTIMIZERS, SCHEDULES, scheduled, updater
from raykb.engine.recipe import Recipe
from raykb.models import MODELS


def classifier_training(
    worker: Worker,
    *,
    train: ImageSet,
    test: ImageSet,
    indices: np.ndarray | None,
    model: dict[str, Any],
    optimizer: dict[str, Any],
    schedule: dict[str, Any],
    recipe: Recipe,
    view: View,
    augmentation: Augmentation,
    seed: int,
) -> Training:
    """Return the training of ``model`` on ``train[indices]``, evaluated on ``test``.

    Args:
        worker: its place; each of several workers takes its share of every batch.
        train: images to train on.
        test: images to evaluate on.
        indices: positions in ``train``, or None for all of them.
        model: a row of ``MODELS`` by ``name``, with its arguments.
        optimizer: a row of ``OPTIMIZERS`` by ``name``, with its arguments.
        schedule: a row of ``SCHEDULES`` by ``name``, with its arguments.
        recipe: how to train.
        view: the default augmentation, with or without Cutout.
        augmentation: comes before the view, on uint8.
        seed: of order and augmentations; the caller seeds the initial weights.
    """
    recipe.check_data_parallel(worker.size)
    network: nn.Module = build(
        MODELS, model, classes=len(train.classes), channels=train.images.shape[1]
    ).to(worker.device)
    objective = CrossEntropy(label_smoothing=recipe.label_smoothing)
    stepper = build(OPTIMIZERS, optimizer, model=network)
    per_epoch = recipe.steps_per_epoch(len(train) if indices is None else len(indices))
    steps = recipe.epochs * per_epoch
    scheduler = scheduled(
        stepper,
        build(SCHEDULES, schedule),
        steps=steps,
        warmup_steps=round(recipe.warmup_epochs * per_epoch),
    )
    trained = network if worker.size == 1 else DistributedDataParallel(network)

    def batches(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        positions = np.arange(len(train)) if indices is None else indices
        for epoch, chosen in shuffled(len(positions), recipe, seed, start):
            rows = positions[chosen[worker.rank :: worker.size]]
            yield viewed(train, rows, view, seed, epoch, worker.device, augmentation)

    return Training(
        step=objective_step(
            objective, trained, precision="bf16" if recipe.precision == "bf16" else "fp32"
        ),
        update=updater(
            network.parameters(),
            stepper,
            scheduler,
            clip_norm=recipe.clip_norm,
            after_step=lambda step: objective.after_step(network, step),
        ),
        batches=batches,
        steps=steps,
        parts={
            "model": network,
            "objective": objective,
            "optimizer": stepper,
            "scheduler": scheduler,
        },
        evaluate=lambda: evaluate(network, test, view.plain, worker.device),
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    test: ImageSet,
    plain: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    batch_size: int = 500,
) -> dict[str, float]:
    """Return ``test/top1`` and ``test/loss`` of ``model`` over all of ``test``."""
    model.eval()
    hits, loss = 0, 0.0
    for first in range(0, len(test), batch_size):
        rows = np.arange(first, min(first + batch_size, len(test)))
        logits = model(plain(torch.from_numpy(test.images[rows]).to(device))).float()
        labels = torch.from_numpy(test.labels[rows]).to(device)
        hits += int((logits.argmax(1) == labels).sum())
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return {"test/top1": hits / len(test), "test/loss": loss / len(test)}
