"""Retrieval: whether images of the same class come first when an image is looked for.

Each test image is a query to all others, which are ranked by the cosine of their features; those of
its class are relevant.

    AP(q)       = 1/R sum_k rel_k P_k,   P_k = 1/k sum_{j <= k} rel_j
    map         = mean of AP over queries
    recall_k    = share of queries with rel_j = 1 for a j <= k

Symbols:
    q       query
    rel_k   1 if the image at rank k = 1..N-1 is relevant, else 0
    R       number of the relevant ones, sum_k rel_k; a query without any is left out

The average precision is that over all ranks (Manning, Raghavan, Schütze, "Introduction to
Information Retrieval", 2008, section 8.4). ``recall_k`` is what metric learning calls recall at k
(Oh Song et al., "Deep metric learning via lifted structured feature embedding", CVPR 2016): it asks
for one relevant image, not for the share of all of them.

Golden: rel = 1, 0, 1, 0: AP = (1 + 2/3) / 2 = 0.8333. rel = 0, 0, 0, 1: AP = 1/4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.engine.loop import Evaluated
from raykb.evaluate.backbone import Features, Judged
from raykb.parts.backbone import Backbone

CUTS = (1, 5)  # the k of recall_k
_PAIRS = 2**21  # of query and image that are ranked at once


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Each test image as a query to the others; a section of the config, without settings."""

    needs: ClassVar[type[Any]] = Backbone
    task: ClassVar[str] = "retrieval"
    compared: ClassVar[Sequence[str]] = ("map",)

    def __call__(self, judged: Judged) -> Evaluated:
        """Return ``map``, ``recall_1`` and ``recall_5``.

        Raises:
            ValueError: no two test images are of one class.
        """
        found = torch.cat([scores(relevant) for relevant in ranked(judged.test)])  # (N, 3)
        asked = found[found.isfinite().all(1)]
        if not len(asked):
            raise ValueError(
                f"retrieval: none of {len(found)} test images has another one of its class; give "
                "two of a class, or leave retrieval out of evaluate"
            )
        names = ("map", *(f"recall_{k}" for k in CUTS))
        return Evaluated(dict(zip(names, asked.mean(0).tolist(), strict=True)))


def ranked(features: Features, *, pairs: int = _PAIRS) -> Iterator[Tensor]:
    """Yield which images are relevant to some queries (n, N-1) bool, the nearest first.

    Of images that are equally near, the first one comes first.

    Args:
        features: of N images, each of which is a query.
        pairs: of query and image that are ranked at once; one query is the least.
    """
    keys, labels = F.normalize(features.rows, dim=1), features.labels
    for queries in torch.arange(len(keys), device=keys.device).split(max(1, pairs // len(keys))):
        cosines = keys[queries] @ keys.T  # (n, N)
        cosines.scatter_(1, queries[:, None], -torch.inf)  # itself is the last
        order = cosines.argsort(dim=1, descending=True, stable=True)[:, :-1]
        yield labels[order] == labels[queries, None]


def scores(relevant: Tensor) -> Tensor:
    """Return AP and the hits among the first of :data:`CUTS`, (n, 3) float64.

    Args:
        relevant: (n, K) bool, rel_k by rank; where there is none, all three are NaN.
    """
    hits = relevant.cumsum(1)  # (n, K)
    ranks = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    precisions = hits.double() / ranks * relevant
    every = hits[:, -1:].double()
    first = [relevant[:, :k].any(1, keepdim=True) / (every > 0) for k in CUTS]
    return torch.cat([precisions.sum(1, keepdim=True) / every, *first], 1)
