"""How a policy is searched: a section of the config."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raykb.augment.fast_autoaugment import SCORES
from raykb.data.splits import Split, stratified_chunks, stratified_subset
from raykb.engine.arguments import above, at_least, misfits, or_none, refuse
from raykb.engine.objective import Precision


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Density matching; the letters are the paper's.

    Args:
        images: a stratified draw of so many training images to search on (the paper's reduced
            sets); null for all. The final trainings take all of them.
        rounds: T, fresh searches of each split.
        width: B, candidates of each search.
        keep: N, policies kept of each search.
        copies: R, augmented copies of each held-out image.
        sub_policies: of a candidate.
        operations: of a sub-policy.
        reward: the score that is maximised: ``max_accuracy`` (official code), ``mean_accuracy``,
            ``mean_loss`` (paper) or ``min_loss``.
        sampler: ``tpe`` or ``random``.
        evaluators_per_split: candidates of one split scored at the same time; with 1 the search
            does not depend on timing.
        chunks: stratified parts of the held-out images; above 1 a candidate is scored part by
            part, and asynchronous halving stops the worse ones early.
        halving_factor: one in so many goes on to twice, four times … the parts.
        batch_size: images of one forward pass.
        precision: of the thetas' forward pass, ``fp32`` or ``bf16``.
        retries: how often a candidate is scored again after its evaluator died.
        max_failed: candidates that may fail before the search ends; null for all, but for the first
            ones.
        every_candidate_a_child: give each candidate, not only the kept, a run in the tracker.
    """

    images: int | None = None
    rounds: int = 2
    width: int = 200
    keep: int = 10
    copies: int = 5
    sub_policies: int = 5
    operations: int = 2
    reward: str = "max_accuracy"
    sampler: Literal["tpe", "random"] = "tpe"
    evaluators_per_split: int = 1
    chunks: int = 1
    halving_factor: float = 2.0
    batch_size: int = 500
    precision: Precision = "fp32"
    retries: int = 2
    max_failed: int | None = None
    every_candidate_a_child: bool = False

    def __post_init__(self) -> None:
        counts = (
            "rounds",
            "width",
            "keep",
            "copies",
            "sub_policies",
            "operations",
            "evaluators_per_split",
            "chunks",
            "batch_size",
        )
        problems = misfits(
            self,
            **dict.fromkeys(counts, at_least(1)),
            images=or_none(at_least(1)),
            halving_factor=above(1),
            retries=at_least(0),
            max_failed=or_none(at_least(0)),
        )
        if self.keep > self.width:
            problems.append(f"keep: {self.keep}, must be at most the width, {self.width}")
        if self.reward not in SCORES:
            problems.append(f"reward: {self.reward!r}, must be one of {', '.join(SCORES)}")
        refuse(problems)

    def splits(
        self, labels: np.ndarray, split: Callable[..., list[Split]], seed: int
    ) -> list[Split]:
        """Return the splits that are searched on, of all images or of a stratified draw of them.

        Args:
            labels: (N,) class numbers of all images.
            split: ``split(labels=…)`` returns the splits of some.
            seed: of the draw.

        Returns:
            Positions in ``labels``, those held out ascending.

        Raises:
            ValueError: so many cannot be drawn, split, or scored in so many chunks.
        """
        drawn = stratified_subset(labels, self.images or len(labels), seed=seed)
        splits = split(labels=labels[drawn])
        for _, held_out in splits:  # refused now rather than after the first trainings
            stratified_chunks(labels[drawn], held_out, self.chunks)
        return [(drawn[rest], drawn[np.sort(held_out)]) for rest, held_out in splits]
