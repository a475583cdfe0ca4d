"""The light search of AutoCLINT: Fast AutoAugment with few images, one network and no TPE.

A candidate is three sub-policies drawn from published ones, with replacement. It is scored by
density matching on the validation images, with the network that is being trained: a pass is worth
the NAUC of its best block of 16 images, a candidate its best pass. Kept are the five best of those
above the current validation score; each sequence of operations once.

Departures: the official pool is AutoAugment's list for CIFAR in the form of its code, 92
sub-policies. Here it is the 75 of the paper's three tables (CIFAR-10, SVHN, ImageNet; Cubuk et al.,
CVPR 2019), as torchvision has them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from raykb.augment.autoclint.loss import probabilities
from raykb.augment.autoclint.settings import AutoClint
from raykb.augment.fast_autoaugment import PolicyEvaluator, best, merge
from raykb.augment.policy import Policy
from raykb.data.views import CropFlipView
from raykb.engine.seeding import generator
from raykb.later import Later
from raykb.metrics.anytime import nauc

v1 = Later("torchvision.transforms")
SUB_POLICIES = 3  # of a candidate
_LEVELS = 9  # of the greatest magnitude of a table; of an operation without one it is of no account


def published_pool() -> Policy:
    """Return the sub-policies of the three tables of AutoAugment."""
    tables = [v1.AutoAugment(table).policies for table in v1.AutoAugmentPolicy]
    return Policy(
        [
            [(name, p, (magnitude or 0) / _LEVELS) for name, p, magnitude in sub_policy]
            for table in tables
            for sub_policy in table
        ]
    )


class Candidate(NamedTuple):
    """A policy and its score."""

    number: int
    policy: Policy
    reward: float


def drawn(pool: Policy, count: int, seed: int) -> list[Policy]:
    """Return ``count`` candidates; one may have a sub-policy twice."""
    rows = torch.randint(
        len(pool), (count, SUB_POLICIES), generator=generator(seed, "candidates")
    ).tolist()
    return [Policy([pool.sub_policies[row] for row in rows_of]) for rows_of in rows]


def block_score(probabilities: np.ndarray, truth: np.ndarray, block: int) -> float:
    """Return the NAUC of the best block of a pass; -1 if no block has one.

    Args:
        probabilities: (N, C).
        truth: (N, C) of 0 and 1.
        block: images of one.
    """
    starts = range(0, len(truth), block)
    scores = [nauc(probabilities[s : s + block], truth[s : s + block]) for s in starts]
    return max((score for score in scores if not np.isnan(score)), default=-1.0)


def kept_policy(candidates: list[Candidate], score: float, keep: int) -> Policy | None:
    """Return the policy of the best candidates above ``score``; None if there are none."""
    better = [each for each in candidates if each.reward > score]
    if not better:
        return None
    return merge([Policy.concatenate([each.policy for each in best(better, keep)])])


def light_search(
    network: nn.Module,
    images: np.ndarray,
    truth: np.ndarray,
    *,
    score: float,
    multi_label: bool,
    settings: AutoClint,
    seed: int,
    device: torch.device,
    left: Callable[[], float],
) -> Policy | None:
    """Return what was found; None if no candidate is above the current score.

    No candidate is begun that would not end in time, were it as slow as the slowest so far.

    Args:
        network: from (N, 1, C, H, W) in [0, 1] to logits; is put into evaluation mode.
        images: uint8 (N, C, H, W), validation images; C is 1 or 3.
        truth: (N, classes) of 0 and 1.
        score: the current validation score.
        multi_label: whether an image may have several classes.
        settings: of the game.
        seed: of candidates and of what images undergo.
        device: where the network is.
        left: tells the seconds that there are for it.
    """
    evaluator = PolicyEvaluator(
        _OfImages(network),
        images,
        labels=truth.argmax(axis=1).astype(np.int64),
        ids=np.arange(len(images)),
        indices=np.arange(len(images)),
        view=CropFlipView(mean=(0.0,), std=(1.0,), padding=0),
        copies=settings.copies,
        seed=seed,
        device=device,
    )
    found: list[Candidate] = []
    before, slowest = left(), 0.0
    for number, policy in enumerate(drawn(published_pool(), settings.candidates, seed)):
        if before < slowest:
            break
        logits = evaluator.logits(policy, 0).cpu()  # (copies, N, classes)
        passes = (probabilities(one, multi_label).numpy() for one in logits)
        reward = max(block_score(one, truth, settings.block) for one in passes)
        found.append(Candidate(number, policy, reward))
        now = left()
        before, slowest = now, max(slowest, before - now)
    return kept_policy(found, score, settings.keep)


class _OfImages(nn.Module):
    """The network of frames as one of images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of images (N, C, H, W)."""
        logits: torch.Tensor = self.network(images[:, None])
        return logits
