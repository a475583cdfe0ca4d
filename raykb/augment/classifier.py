"""Train a classifier under an augmentation: the theta of a search, and its final comparison.

What the step of number s sees is a function of (seed, s): the order of an epoch is a permutation
keyed by (seed, epoch), and what a sample looks like is keyed by (seed, epoch, sample id). So the
step's number is the whole data position, and a resumed training sees what it would have seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raykb.augment.augmentations import Augmentation
from raykb.config import build
from raykb.data.images import ImageSet
from raykb.data.views import View
from raykb.engine.loop import Training, Worker
from raykb.engine.objective import CrossEntropy, Precision, objective_step
from raykb.engine.optim import OPTIMIZERS, SCHEDULES, scheduled, updater
from raykb.engine.seeding import generator, keyed_uniform, stream_seed
from raykb.models import MODELS


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained; a section of the config.

    Args:
        epochs: passes over the training images.
        batch_size: images of one optimizer step, over all workers.
        warmup_epochs: linear climb of the learning rate from 0.
        clip_norm: largest 2-norm of the gradient; null for no clipping.
        label_smoothing: of the cross entropy.
        precision: ``fp32``, or ``bf16`` for autocast.
        save_every_epochs: epochs between two checkpoints; 0 saves none.
    """

    epochs: int
    batch_size: int
    warmup_epochs: float = 0.0
    clip_norm: float | None = 5.0
    label_smoothing: float = 0.0
    precision: Precision = "fp32"
    save_every_epochs: int = 5

    def __post_init__(self) -> None:
        problems = []
        if self.epochs < 1:
            problems.append(f"epochs: {self.epochs}, must be at least 1")
        if self.batch_size < 1:
            problems.append(f"batch_size: {self.batch_size}, must be at least 1")
        if self.save_every_epochs < 0:
            problems.append(f"save_every_epochs: {self.save_every_epochs}, must be at least 0")
        if not 0 <= self.warmup_epochs < max(self.epochs, 1):
            problems.append(
                f"warmup_epochs: {self.warmup_epochs}, must be at least 0 and below the "
                f"{self.epochs} epochs"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def check_workers(self, workers: int) -> None:
        """Raise ValueError unless a batch can be shared out evenly to so many workers."""
        if self.batch_size % workers:
            raise ValueError(
                f"batch_size: {self.batch_size} does not divide by {workers} workers; it is the "
                "global one, shared out evenly"
            )

    def steps_per_epoch(self, count: int) -> int:
        """Return the full batches in ``count`` images; fewer images than a batch are one."""
        return max(1, count // self.batch_size)


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
    recipe.check_workers(worker.size)
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
        for epoch in range(start // per_epoch, recipe.epochs):
            order = torch.randperm(len(positions), generator=generator(seed, "order", epoch))
            first = start % per_epoch if epoch == start // per_epoch else 0
            for number in range(first, per_epoch):
                batch = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
                rows = positions[batch[worker.rank :: worker.size].numpy()]
                yield augmented(train, rows, augmentation, view, seed, epoch, worker.device)

    return Training(
        step=objective_step(objective, trained, precision=recipe.precision),
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


def augmented(
    images: ImageSet,
    rows: np.ndarray,
    augmentation: Augmentation,
    view: View,
    seed: int,
    epoch: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return float images (N, C, H, W) and labels (N,) of ``rows`` as ``epoch`` sees them."""
    ids = images.ids[rows]
    pixels = torch.from_numpy(images.images[rows]).to(device)
    pixels = augmentation(pixels, ids, epoch)
    uniforms = keyed_uniform(stream_seed(seed, "view", epoch), ids, view.draws)
    labels = torch.from_numpy(images.labels[rows]).to(device)
    return view(pixels, uniforms), labels


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
