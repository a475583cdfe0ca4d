"""Density matching as a score for a search: one object that serves every split."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raykb.augment.fast_autoaugment import (
    PolicyEvaluator,
    density_matching_scores,
    policy_from,
    reward,
)
from raykb.augment.settings import SearchSettings
from raykb.data.images import ImageSet
from raykb.data.splits import stratified_chunks
from raykb.data.views import ImageView


@dataclass
class DensityMatching:
    """Scores candidate policies on the held-out part of whichever split they are for.

    An evaluator of a split is set up when its first candidate comes and then kept. A candidate
    that is scored on one more part of the data goes on from the parts before.

    Args:
        network: builds a theta, without its weights.
        view: the default augmentation.
        held_out: positions of the held-out images, by split.
        settings: of the search; its chunks are parts of what each split holds out.
        seed: of all random numbers.
        device: where the thetas run.
    """

    network: Callable[[], nn.Module]
    view: ImageView
    held_out: Sequence[np.ndarray]
    settings: SearchSettings
    seed: int
    device: str

    def setup(self, train: ImageSet, thetas: Sequence[dict[str, Tensor]]) -> None:
        """Take the images, which stay where they are, and the trained states of the thetas."""
        self._train, self._thetas = train, thetas
        self._evaluators: dict[int, PolicyEvaluator] = {}
        self._scored: tuple[Any, ...] = ()
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._seconds = 0.0

    def score(self, candidate: dict[str, Any], budget: int) -> dict[str, float]:
        """Return the four scores, the reward and the seconds over the first ``budget`` chunks."""
        start = time.perf_counter()
        evaluator = self._evaluator(candidate["fields"]["split"])
        policy = policy_from(candidate["params"])
        name = (candidate["study"], candidate["number"])
        if name != self._scored or len(self._parts) > budget:
            self._scored, self._parts, self._seconds = name, [], 0.0
        while len(self._parts) < budget:
            self._parts.append(evaluator.evaluate_chunk(policy, len(self._parts)))
        losses, hits = (torch.cat(parts, dim=1) for parts in zip(*self._parts, strict=True))
        scores = density_matching_scores(losses, hits)
        self._seconds += time.perf_counter() - start
        return scores | {"reward": reward(scores, self.settings.reward), "seconds": self._seconds}

    def _evaluator(self, split: int) -> PolicyEvaluator:
        if split not in self._evaluators:
            train, settings, held_out = self._train, self.settings, self.held_out[split]
            theta = self.network()
            theta.load_state_dict(self._thetas[split])
            self._evaluators[split] = PolicyEvaluator(
                theta,
                train.images,
                labels=train.labels,
                ids=train.ids,
                indices=held_out,
                view=self.view,
                copies=settings.copies,
                seed=self.seed,
                split=split,
                chunks=stratified_chunks(
                    train.labels[held_out], np.arange(len(held_out)), settings.chunks
                ),
                batch_size=settings.batch_size,
                device=self.device,
                autocast=settings.precision == "bf16",
            )
        return self._evaluators[split]
