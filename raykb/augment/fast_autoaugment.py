"""Fast AutoAugment: find an augmentation policy without training a network for each candidate.

Lim, Kim, Kim, Kim, Kim, "Fast AutoAugment", NeurIPS 2019, arXiv:1905.00397.

*Density matching*: a network theta is trained on one part of the data, D_M, without the searched
augmentation. A policy T is good if theta still classifies the other part, D_A, after T. The search
needs forward passes only; theta never changes::

    for each split k, each round t:
        candidates  B proposals of a searcher (TPE) over search_space()
        scores      theta_k on T(D_A^k), R copies of each image      PolicyEvaluator.score
        kept        the N with the highest reward                    best
    result          kept policies, duplicates dropped, one after another        merge

Each copy x~[r, n] of image n is policy -> crop and flip -> normalise -> Cutout, drawn anew::

    l[r, n] = cross_entropy(theta(x~[r, n]), y[n])        c[r, n] = [argmax theta(x~[r, n]) = y[n]]

    min_loss  = mean_n min_r  l[r, n]                     max_accuracy  = mean_n max_r  c[r, n]
    mean_loss = mean_n mean_r l[r, n]                     mean_accuracy = mean_n mean_r c[r, n]

Symbols:
    K = 5     splits, each with a theta_k of its own
    T = 2     rounds of search per split (the policy T(.) above is the paper's letter too)
    B = 200   candidates per round
    N = 10    policies kept per round
    R = 5     copies of each held-out image
    x_A       uint8 (M, C, H, W), y_A (M,): the held-out part D_A
    l, c      (R, M): losses and hits

Departures:
    - score: the paper minimises the expected loss, ``mean_loss``; the official code's reward is
      the best of R copies, ``max_accuracy``, an oracle value that is no validation accuracy. All
      four are computed here at once; ``reward`` turns any of them into a number to maximise.
    - common random numbers: the official code draws anew for each candidate. Here the numbers are
      keyed by (seed, split, copy, sample id) and thus the same for all candidates: differences
      between candidates are differences between policies, and a score can be had again.
    - cost: the official code starts a process, five data sets and twenty loader workers for each
      candidate. Here an evaluator lives as long as its split, and augments in batches.
    - rounds: paper T = 2, the released script 1. ``merge`` takes policies of any number of rounds.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykb.augment.draws import Draws, apply_draws
from raykb.augment.policy import Policy
from raykb.data.operations import NAMES, rows_at_a_time
from raykb.data.views import ImageView
from raykb.engine.seeding import keyed_uniform, stream_seed

SCORES = ("min_loss", "mean_loss", "max_accuracy", "mean_accuracy")

SearchSpace = dict[str, tuple[str, ...] | tuple[float, float]]


def search_space(num_sub_policies: int = 5, num_operations: int = 2) -> SearchSpace:
    """Return the candidate's variables: three for each operation of each sub-policy.

    ``policy_i_j`` is categorical and comes with its choices; ``prob_i_j`` and ``level_i_j`` are
    uniform and come with (low, high).
    """
    space: SearchSpace = {}
    for i in range(num_sub_policies):
        for j in range(num_operations):
            space[f"policy_{i}_{j}"] = NAMES
            space[f"prob_{i}_{j}"] = (0.0, 1.0)
            space[f"level_{i}_{j}"] = (0.0, 1.0)
    return space


def policy_from(params: Mapping[str, Any]) -> Policy:
    """Return the policy that the variables of :func:`search_space` describe.

    Raises:
        ValueError: variables are missing or unknown, or the policy has problems.
    """
    keys = [re.fullmatch(r"(policy|prob|level)_(\d+)_(\d+)", key) for key in params]
    places = {(int(key[2]), int(key[3])) for key in keys if key}
    rows, columns = (1 + max((place[axis] for place in places), default=0) for axis in (0, 1))
    needed = search_space(rows, columns).keys()
    if needed != params.keys():
        raise ValueError(
            f"params: missing {sorted(needed - params.keys())}, "
            f"unknown {sorted(params.keys() - needed)}; allowed: the variables of "
            f"search_space({rows}, {columns})"
        )
    return Policy(
        [
            [
                (params[f"policy_{i}_{j}"], params[f"prob_{i}_{j}"], params[f"level_{i}_{j}"])
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )


def density_matching_scores(losses: Tensor, hits: Tensor) -> dict[str, float]:
    """Return the four scores of one candidate.

    Args:
        losses: (R, M), cross-entropy of each copy of each held-out image.
        hits: (R, M), whether that copy was classified right.
    """
    losses, hits = losses.double(), hits.double()
    return {
        "min_loss": losses.amin(0).mean().item(),
        "mean_loss": losses.mean().item(),
        "max_accuracy": hits.amax(0).mean().item(),
        "mean_accuracy": hits.mean().item(),
    }


def reward(scores: Mapping[str, float], name: str) -> float:
    """Return the score called ``name`` as a number to maximise: losses change their sign."""
    if name not in SCORES:
        near = get_close_matches(name, SCORES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"score: {name!r}{hint}; allowed: {', '.join(SCORES)}")
    return -scores[name] if name.endswith("_loss") else scores[name]


class Scored(Protocol):
    """A candidate with its reward."""

    @property
    def number(self) -> int:
        """Its place in the order of proposal."""

    @property
    def reward(self) -> float:
        """What is to be high."""


_Scored = TypeVar("_Scored", bound=Scored)


def best(candidates: Sequence[_Scored], count: int) -> list[_Scored]:
    """Return the ``count`` candidates with the highest reward, the earlier one first among equals.

    A reward that is not a number counts as the lowest.
    """
    if count < 1:
        raise ValueError(f"count: {count}; allowed: 1 or more")

    def rank(candidate: Scored) -> tuple[bool, float, int]:
        unknown = math.isnan(candidate.reward)
        return unknown, 0.0 if unknown else -candidate.reward, candidate.number

    return sorted(candidates, key=rank)[:count]


def merge(kept: Sequence[Policy]) -> Policy:
    """Return one policy of the kept ones, in order, after each has lost its own duplicates.

    As in the official code nothing is ranked or dropped across the kept policies.
    """
    return Policy.concatenate([policy.without_duplicates() for policy in kept])


class PolicyEvaluator:
    """Scores candidate policies on the held-out part of one split; lives as long as the split.

    Args:
        theta: the split's trained network; moved to ``device`` and put into evaluation mode.
        images: uint8 (N, C, H, W), the whole data set; may be a read-only memory map or a view of
            an object store: it is read block by block on the CPU, and its held-out part copied
            once to any other device.
        labels: int64 (N,).
        ids: int64 (N,), the sample ids that key all random numbers.
        indices: int64 (M,), which of the N are held out.
        view: the default augmentation, drawn anew for each copy.
        copies: R.
        seed: of the random numbers.
        split: k; its random numbers are its own.
        chunks: positions in ``indices``, in parts that are scored one after another so that a bad
            candidate can be stopped early; stratified if scores of few chunks are to be compared.
            One chunk of everything if None.
        batch_size: images augmented at once, copies included; theta takes them at once too, but on
            a CPU in parts that stay in its caches.
        device: where theta runs and images are augmented.
        autocast: run theta in bfloat16 where PyTorch does so by default.
    """

    def __init__(
        self,
        theta: nn.Module,
        images: np.ndarray,
        *,
        labels: np.ndarray,
        ids: np.ndarray,
        indices: np.ndarray,
        view: ImageView,
        copies: int = 5,
        seed: int = 0,
        split: int = 0,
        chunks: Sequence[np.ndarray] | None = None,
        batch_size: int = 500,
        device: torch.device | str = "cpu",
        autocast: bool = False,
    ) -> None:
        self.chunks = [np.arange(len(indices))] if chunks is None else list(chunks)
        if problems := _problems(images, labels, ids, indices, self.chunks, copies, batch_size):
            raise ValueError("\n  - ".join(["PolicyEvaluator:", *problems]))
        self.device = torch.device(device)
        self.theta = theta.eval().to(self.device).to(memory_format=torch.channels_last)
        self.view = view
        self.copies = copies
        self._autocast = autocast
        self._block = max(1, batch_size // copies)
        self._images, self._indices, self._ids = images, indices, ids[indices]
        self._labels = torch.from_numpy(labels[indices]).to(self.device)
        self._streams = [(seed, "density_matching", split, copy) for copy in range(copies)]
        self._view_uniforms = self._keyed("view", view.draws)
        self._policy_uniforms = self._keyed("policy", 0)
        self._held_out = None if self.device.type == "cpu" else self._upload()

    def score(self, policy: Policy | None, budget: int | None = None) -> dict[str, float]:
        """Return the four scores of a policy, the operations it fired per image, and the seconds.

        Args:
            policy: the candidate; None scores the default augmentation alone.
            budget: how many of the chunks to use, from the first on; all if None.
        """
        budget = len(self.chunks) if budget is None else budget
        if not 1 <= budget <= len(self.chunks):
            raise ValueError(f"budget: {budget}; allowed: 1 to {len(self.chunks)} chunks")
        start = time.perf_counter()
        chunks = [self.evaluate_chunk(policy, k) for k in range(budget)]
        losses, hits = (torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True))
        scores = density_matching_scores(losses, hits)
        scores["fired_operations"] = self._fired(policy, budget)
        scores["seconds"] = time.perf_counter() - start
        return scores

    @torch.inference_mode()
    def evaluate_chunk(self, policy: Policy | None, k: int) -> tuple[Tensor, Tensor]:
        """Return losses and hits of chunk ``k``, each (R, chunk), on the CPU.

        The pieces of several chunks, joined along the second axis, are what
        :func:`density_matching_scores` takes.
        """
        logits = self.logits(policy, k)  # (R, chunk, classes)
        labels = self._labels[torch.from_numpy(self.chunks[k]).to(self.device)]
        labels = labels.expand(self.copies, -1)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        hits = logits.argmax(2) == labels
        return losses.view(self.copies, -1).cpu(), hits.cpu()

    @torch.inference_mode()
    def logits(self, policy: Policy | None, k: int) -> Tensor:
        """Return what theta says of the copies of chunk ``k``, (R, chunk, classes)."""
        found = []
        for start in range(0, len(self.chunks[k]), self._block):
            positions = self.chunks[k][start : start + self._block]
            batch = self._read(positions).repeat(self.copies, 1, 1, 1)  # (R * block, C, H, W)
            if policy is not None:
                batch = apply_draws(batch, self._draws(policy, positions))
            uniforms = self._view_uniforms[:, positions].flatten(0, 1)
            found.append(self._logits(batch, uniforms).unflatten(0, (self.copies, -1)))
        return torch.cat(found, dim=1)

    def _logits(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """What theta says of the views of images; on a CPU, of as many at once as stay cached."""
        rows = rows_at_a_time(images)
        logits = []
        for some, numbers in zip(images.split(rows), uniforms.split(rows), strict=True):
            batch = self.view(some, numbers).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                logits.append(self.theta(batch))
        return torch.cat(logits).float()

    def _draws(self, policy: Policy, positions: np.ndarray) -> Draws:
        """What the copies of some images undergo; the numbers are made once, for all policies."""
        if policy.draws > self._policy_uniforms.shape[2]:
            self._policy_uniforms = self._keyed("policy", policy.draws)
        return policy.draw(self._policy_uniforms[:, positions].flatten(0, 1))

    def _fired(self, policy: Policy | None, budget: int) -> float:
        """Operations fired per image in the first ``budget`` chunks."""
        if policy is None:
            return 0.0
        positions = np.concatenate(self.chunks[:budget])
        return self._draws(policy, positions).fired.double().mean().item()

    def _keyed(self, purpose: str, count: int) -> Tensor:
        """(R, M, count) float64: the numbers of each copy of each held-out image."""
        streams = [stream_seed(*stream, purpose) for stream in self._streams]
        return torch.stack([keyed_uniform(stream, self._ids, count) for stream in streams])

    def _read(self, positions: np.ndarray) -> Tensor:
        """uint8 (block, C, H, W) on the device."""
        if self._held_out is not None:
            return self._held_out[torch.from_numpy(positions).to(self.device)]
        return torch.from_numpy(self._images[self._indices[positions]])

    def _upload(self) -> Tensor:
        """The held-out images on the device, copied a block at a time."""
        blocks = np.array_split(self._indices, max(1, len(self._indices) // self._block))
        return torch.cat([torch.from_numpy(self._images[rows]).to(self.device) for rows in blocks])


def _problems(
    images: np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray,
    indices: np.ndarray,
    chunks: Sequence[np.ndarray],
    copies: int,
    batch_size: int,
) -> list[str]:
    """Return everything that keeps an evaluator from being set up, in words."""
    problems = []
    if images.dtype != np.uint8 or images.ndim != 4:
        problems.append(f"images: {images.dtype} {images.shape}; allowed: uint8 (N, C, H, W)")
    for name, values in (("labels", labels), ("ids", ids)):
        if values.dtype != np.int64 or values.shape != images.shape[:1]:
            problems.append(
                f"{name}: {values.dtype} {values.shape}; allowed: int64 ({len(images)},), "
                "one for each image"
            )
    for name, values, end in (
        ("indices", indices, len(images)),
        *((f"chunks[{k}]", chunk, len(indices)) for k, chunk in enumerate(chunks)),
    ):
        if not len(values) or values.min() < 0 or values.max() >= end:
            problems.append(f"{name}: {values!r}; allowed: one or more numbers from 0 to {end - 1}")
    for name, count in (("copies", copies), ("batch_size", batch_size), ("chunks", len(chunks))):
        if count < 1:
            problems.append(f"{name}: {count}; allowed: 1 or more")
    return problems
