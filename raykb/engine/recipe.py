"""How long and how a network is trained: what the trainings of all papers have in common."""

from dataclasses import dataclass
from typing import Literal

from raykb.engine.arguments import above, at_least, misfits, or_none, refuse, within

RENAMED = {
    "warmup_epochs": "warmup",
    "warmup_steps": "warmup",
    "save_every_epochs": "save_every",
    "label_smoothing": "method.label_smoothing",
    "unlabelled_ratio": "unlabelled.ratio",
}
"""What arguments of recipes were called once, for the schemas of scripts."""

_EVERY_EPOCHS = {"save_every": 5.0, "log_every": 1.0}
_EVERY_STEPS = {"save_every": 1000.0, "log_every": 50.0}
_LARGE_START = 0.05  # share of the initial weights in the average that the user is told of


@dataclass(frozen=True)
class Lengths:
    """A recipe in optimizer steps, for a data set of some size.

    Attributes:
        steps: of the whole training.
        warmup: of them, while the learning rate climbs.
        save_every: between two checkpoints; 0 saves none.
        log_every: between two records.
        evaluate_every: between two evaluations on the way; 0 for none.
    """

    steps: int
    warmup: int
    save_every: int
    log_every: int
    evaluate_every: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; a section of the config.

    The length is given in epochs or in steps, and warm-up and intervals are in the same unit.

    Args:
        epochs: passes over the training samples; null if ``steps`` is given.
        steps: optimizer steps; null if ``epochs`` is given.
        batch_size: samples of one optimizer step, over all workers; of labelled ones, where there
            are others beside them.
        keep_last: train on the last, smaller batch of an epoch too.
        warmup: epochs or steps of a linear climb of the learning rate from 0.
        clip_norm: largest 2-norm of the gradient; null for no clipping.
        ema_decay: of the averaged weights, which then are what is evaluated and kept; 0 for the
            last ones as they are.
        precision: ``fp32``, or ``bf16`` for autocast; a pipeline takes ``fp16`` as well, with
            dynamic loss scaling.
        evaluate_every: epochs or steps between two evaluations on the way (``valid/…`` in the
            tracker); 0 for none but the last.
        save_every: epochs or steps between two checkpoints; 0 saves none, null is every 5 epochs
            or 1,000 steps.
        log_every: epochs or steps between two records; null is every epoch or 50 steps.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 64
    keep_last: bool = False
    warmup: float = 0.0
    clip_norm: float | None = None
    ema_decay: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    evaluate_every: float = 0.0
    save_every: float | None = None
    log_every: float | None = None

    def __post_init__(self) -> None:
        problems = misfits(
            self,
            epochs=or_none(at_least(1)),
            steps=or_none(at_least(1)),
            batch_size=at_least(1),
            clip_norm=or_none(above(0)),
            ema_decay=within(0, 1),
            evaluate_every=at_least(0),
            save_every=or_none(at_least(0)),
            log_every=or_none(above(0)),
        )
        if (self.epochs is None) == (self.steps is None):
            problems.append(
                f"epochs: {self.epochs}, and steps: {self.steps}; give one of the two, the other "
                "is null"
            )
        elif not 0 <= self.warmup < max(self._length, 1):
            problems.append(
                f"warmup: {self.warmup:g}, must be at least 0 and below the {self._length} "
                f"{self.unit}"
            )
        refuse(problems)

    @property
    def unit(self) -> str:
        """What the length is counted in."""
        return "steps" if self.epochs is None else "epochs"

    @property
    def _length(self) -> int:
        return self.epochs or self.steps or 0

    def share_of_start(self, count: int) -> float:
        """Return the weight that the initial weights have in the final average."""
        return self.ema_decay ** self.lengths(count).steps

    def too_short(self, count: int) -> str:
        """Say what is wrong with the average of so short a training; nothing, if it is not."""
        if (start := self.share_of_start(count)) <= _LARGE_START:
            return ""
        return (
            f"ema_decay: after {self.lengths(count).steps} steps {start:.0%} of the average are "
            "still the initial weights; lower it, or train longer"
        )

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

    def lengths(self, count: int) -> Lengths:
        """Return the recipe in steps, for ``count`` training samples."""
        unit, usual = 1, _EVERY_STEPS
        if self.epochs is not None:
            unit, usual = self.steps_per_epoch(count), _EVERY_EPOCHS

        def interval(name: str) -> int:
            given = getattr(self, name)
            every = usual[name] if given is None else given
            return max(1, round(every * unit)) if every else 0

        return Lengths(
            steps=self._length * unit,
            warmup=round(self.warmup * unit),
            save_every=interval("save_every"),
            log_every=interval("log_every"),
            evaluate_every=interval("evaluate_every"),
        )
