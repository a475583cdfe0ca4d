"""How long and how semi-supervised training goes on: a section of the config."""

from dataclasses import dataclass

from raykb.engine.arguments import above, at_least, misfits, or_none, refuse, within
from raykb.engine.objective import Precision


@dataclass(frozen=True, kw_only=True)
class SemiRecipe:
    """How a network is trained with labelled and unlabelled images.

    Args:
        steps: optimizer steps; K in the papers.
        batch_size: labelled images of one step, over all workers; B.
        unlabelled_ratio: unlabelled images of one step for each labelled one; mu.
        warmup_steps: linear climb of the learning rate from 0.
        clip_norm: largest 2-norm of the gradient; null for no clipping.
        ema_decay: of the averaged weights, which are what is evaluated and kept; 0 for the last
            ones as they are.
        precision: ``fp32``, or ``bf16`` for autocast.
        save_every: steps between two checkpoints; 0 saves none.
        log_every: steps between two records.
    """

    steps: int
    batch_size: int = 64
    unlabelled_ratio: int = 7
    warmup_steps: int = 0
    clip_norm: float | None = None
    ema_decay: float = 0.999
    precision: Precision = "fp32"
    save_every: int = 1000
    log_every: int = 50

    def __post_init__(self) -> None:
        problems = misfits(
            self,
            steps=at_least(1),
            batch_size=at_least(1),
            unlabelled_ratio=at_least(1),
            clip_norm=or_none(above(0)),
            ema_decay=within(0, 1),
            save_every=at_least(0),
            log_every=at_least(1),
        )
        if not 0 <= self.warmup_steps < max(self.steps, 1):
            problems.append(
                f"warmup_steps: {self.warmup_steps}, must be at least 0 and below the "
                f"{self.steps} steps"
            )
        refuse(problems)

    @property
    def share_of_start(self) -> float:
        """Weight that the initial weights have in the final average."""
        return self.ema_decay**self.steps

    @property
    def unlabelled_batch_size(self) -> int:
        """Unlabelled images of one step, over all workers; N = mu B."""
        return self.unlabelled_ratio * self.batch_size

    def check_data_parallel(self, workers: int) -> None:
        """Raise ValueError unless a step's labelled images can be shared out evenly."""
        if self.batch_size % workers:
            raise ValueError(
                f"batch_size: {self.batch_size} does not divide by {workers} workers; it is the "
                "number over all of them"
            )
