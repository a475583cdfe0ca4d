"""Train a classifier with few labels and a stream of unlabelled images."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raykb.config import build
from raykb.data.images import ImageSet
from raykb.data.strong import PairOfViews
from raykb.data.unlabelled import Stream, Views
from raykb.data.views import View
from raykb.engine.loop import Training, Worker
from raykb.engine.objective import objective_step
from raykb.engine.optim import OPTIMIZERS, SCHEDULES, scheduled, updater
from raykb.engine.seeding import stream_seed
from raykb.metrics.classification import class_accuracies, confusion_matrix
from raykb.models import MODELS
from raykb.semi import METHODS
from raykb.semi.batch import SemiBatch, Task
from raykb.semi.labelled import Labelled
from raykb.semi.method import Method
from raykb.semi.recipe import SemiRecipe


def semi_training(
    worker: Worker,
    *,
    labelled: ImageSet,
    unlabelled: Stream,
    test: ImageSet,
    model: dict[str, Any],
    optimizer: dict[str, Any],
    schedule: dict[str, Any],
    method: dict[str, Any],
    recipe: SemiRecipe,
    view: View,
    views: PairOfViews,
    seed: int,
    truths: dict[int, int] | None = None,
    keep: Callable[[Tensor], None] | None = None,
) -> Training:
    """Return the training of ``model`` by ``method``.

    The part ``model`` of its state is the plain classifier with averaged weights: what is evaluated
    and walked away with. The part ``student`` is what the optimizer trains. The average begins at
    the initial weights; buffers (batch norm's statistics) are the student's, as in the official
    codes.

    Args:
        worker: its place; each of several workers takes its share of every batch.
        labelled: images to learn labels from.
        unlabelled: the stream of all others; it decides how many come at a step.
        test: images to evaluate on.
        model: a row of ``MODELS`` by ``name``, with its arguments.
        optimizer: a row of ``OPTIMIZERS`` by ``name``, with its arguments.
        schedule: a row of ``SCHEDULES`` by ``name``, with its arguments.
        method: a row of ``METHODS`` by ``name``, with its arguments.
        recipe: how to train.
        view: its plain form normalises every image; its augmentation is not used.
        views: makes the weak views of labelled images.
        seed: of order and views; the caller seeds the initial weights.
        truths: true labels of unlabelled images by id, all of them, for figures alone; or None.
        keep: is given the confusion matrix (C, C) of the test images once they are evaluated.
    """
    recipe.check_data_parallel(worker.size)
    network: nn.Module = build(
        MODELS, model, classes=len(labelled.classes), channels=labelled.images.shape[1]
    )
    task = _task(len(labelled.classes), recipe.steps, unlabelled.ids(), truths)
    objective: Method = build(METHODS, method, task=task).to(worker.device)
    student = objective.network(network, seed).to(worker.device)
    stepper = build(OPTIMIZERS, optimizer, model=student)
    scheduler = scheduled(
        stepper,
        build(SCHEDULES, schedule),
        steps=recipe.steps,
        warmup_steps=recipe.warmup_steps,
    )
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    averaged.requires_grad_(False)
    averaged.update_parameters(network)  # the first update copies; all others average
    trained = student if worker.size == 1 else DistributedDataParallel(student)
    source = Labelled(labelled, recipe.batch_size, views, stream_seed(seed, "labelled"))

    def batches(start: int) -> Iterator[SemiBatch]:
        stream = (
            unlabelled.batches(start, worker.rank, worker.size, worker.device, recipe.steps)
            if objective.unlabelled
            else itertools.repeat(_nothing(labelled))
        )
        try:
            for step in range(start, recipe.steps):
                images, labels = source.at(step, worker.rank, worker.size, worker.device)
                weak, strong, ids = (part.to(worker.device) for part in next(stream))
                strong = _one_after_the_other(strong, objective.views, weak.shape[1])
                images, weak, strong = map(view.plain, (images, weak, strong))
                yield SemiBatch(images, labels, weak, strong, ids)
        finally:
            unlabelled.close()

    def after_step(step: int) -> None:
        objective.after_step(student, step)
        averaged.update_parameters(network)

    update = updater(
        student.parameters(), stepper, scheduler, clip_norm=recipe.clip_norm, after_step=after_step
    )
    return Training(
        step=objective_step(objective, trained, precision=recipe.precision),
        update=lambda step: update(step) | (unlabelled.figures() if objective.unlabelled else {}),
        batches=batches,
        steps=recipe.steps,
        parts={
            "model": averaged.module,
            "student": student,
            "objective": objective,
            "optimizer": stepper,
            "scheduler": scheduler,
        },
        evaluate=lambda: (
            evaluate(averaged.module, test, view, worker.device, keep=keep)
            if worker.rank == 0
            else {}
        ),
    )


def _nothing(labelled: ImageSet) -> Views:
    """Return no unlabelled images."""
    none = torch.empty(0, *labelled.images.shape[1:], dtype=torch.uint8)
    return Views(none, none, torch.empty(0, dtype=torch.int64))


def _one_after_the_other(strong: Tensor, views: int, channels: int) -> Tensor:
    """Return strong views (N, views C, H, W) as (views N, C, H, W)."""
    if strong.shape[1] != views * channels:
        raise ValueError(
            f"strong_views: {strong.shape[1] // channels} in the stream, must be the {views} that "
            "the method takes; set them in the stream's view"
        )
    return torch.cat(strong.split(channels, 1)) if views > 1 else strong


def _task(classes: int, steps: int, ids: np.ndarray, truths: dict[int, int] | None) -> Task:
    ids = np.sort(ids)
    if truths is None:
        return Task(classes, steps, torch.from_numpy(ids))
    missing = [int(sample) for sample in ids if int(sample) not in truths]
    if missing:
        raise ValueError(
            f"truths: none for {len(missing)} of {len(ids)} unlabelled images, as {missing[0]}; "
            "give those of all, or None"
        )
    labels = torch.tensor([truths[int(sample)] for sample in ids])
    return Task(classes, steps, torch.from_numpy(ids), labels)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    test: ImageSet,
    view: View,
    device: torch.device,
    *,
    keep: Callable[[Tensor], None] | None = None,
    batch_size: int = 500,
) -> dict[str, float]:
    """Return ``test/top1``, ``test/loss`` and ``test/class_accuracy/3`` for each class.

    Args:
        model: the classifier; it is left in evaluation mode.
        test: images, of which a class may have none: it has no accuracy then.
        view: its plain form normalises them.
        device: of the model.
        keep: is given the confusion matrix (C, C) int64: how often label i was taken for j.
        batch_size: images of one forward pass.
    """
    model.eval()
    classes, loss = len(test.classes), 0.0
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for first in range(0, len(test), batch_size):
        rows = slice(first, first + batch_size)
        logits = model(view.plain(torch.from_numpy(test.images[rows]).to(device))).float()
        labels = torch.from_numpy(test.labels[rows]).to(device)
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        confusion += confusion_matrix(logits.argmax(1), labels, classes).cpu()
    if keep is not None:
        keep(confusion)
    shares = class_accuracies(confusion)
    return {
        "test/top1": int(confusion.diagonal().sum()) / len(test),
        "test/loss": loss / len(test),
    } | {
        f"test/class_accuracy/{label}": float(share)
        for label, share in enumerate(shares)
        if share.isfinite()
    }
