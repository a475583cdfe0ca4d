"""How long and how a network is trained: what the trainings of all papers have in common."""

from dataclasses import dataclass
from typing import Literal

from raykb.engine.arguments import above, at_least, misfits, or_none, refuse, within


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; a section of the config.

    Args:
        epochs: passes over the training samples.
        batch_size: samples of one optimizer step, over all workers.
        keep_last: train on the last, smaller batch of an epoch too.
        warmup_epochs: linear climb of the learning rate from 0.
        clip_norm: largest 2-norm of the gradient; null for no clipping.
        label_smoothing: of the cross entropy.
        precision: ``fp32``, or ``bf16`` for autocast; a pipeline takes ``fp16`` as well, with
            dynamic loss scaling.
        save_every_epochs: epochs between two checkpoints; 0 saves none.
    """

    epochs: int
    batch_size: int
    warmup_epochs: float = 0.0
    clip_norm: float | None = 5.0
    label_smoothing: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    save_every_epochs: int = 5
    keep_last: bool = False

    def __post_init__(self) -> None:
        least = {"epochs": at_least(1), "batch_size": at_least(1), "save_every_epochs": at_least(0)}
        positive = {"clip_norm": or_none(above(0)), "label_smoothing": within(0, 1)}
        problems = misfits(self, **least, **positive)
        if not 0 <= self.warmup_epochs < max(self.epochs, 1):
            problems.append(
                f"warmup_epochs: {self.warmup_epochs}, must be at least 0 and below the "
                f"{self.epochs} epochs"
            )
        refuse(problems)

    def check_data_parallel(self, workers: int) -> None:
        """Raise ValueError unless so many workers that each have the whole model can train so."""
        problems = []
        if self.batch_size % workers:
            problems.append(
                f"batch_size: {self.batch_size} does not divide by {workers} workers; it is the "
                "global one, shared out evenly"
            )
        if self.precision == "fp16":
            problems.append(
                "precision: 'fp16' needs loss scaling, which pipelines alone have; take bf16"
            )
        refuse(problems)

    def steps_per_epoch(self, count: int) -> int:
        """Return the batches in ``count`` samples; fewer samples than a batch are one."""
        return max(1, -(-count // self.batch_size) if self.keep_last else count // self.batch_size)
