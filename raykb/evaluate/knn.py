"""Weighted nearest neighbours: what classes the features that point the same way have.

Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
CVPR 2018, arXiv 1805.01978, section 3.4.

    score_c(x) = sum over j in N_k(x) of exp(cos(x, x_j) / T) [y_j = c]

Symbols:
    x, x_j   features (d,) of a test image and of training image j, y_j its class
    N_k(x)   the k training images with the largest cosine
    T        temperature

Golden: k = 3, T = 1, cosines 0.9, 0.5, 0.4 of classes a, b, b: exp 0.9 = 2.4596 of a against
exp 0.5 + exp 0.4 = 3.1405 of b, so b. With T = 0.1: 8103.1 of a against 203.0 of b, so a.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.engine.arguments import above, at_least, check_settings
from raykb.engine.loop import Evaluated
from raykb.evaluate.backbone import Judged
from raykb.parts.backbone import Backbone

SHOWN, NEAREST = 8, 5  # test images whose neighbours are kept, and how many of these
_ROWS = 500  # test images whose cosines are held at once


@dataclass(frozen=True, kw_only=True)
class KNN:
    """Weighted nearest neighbours; a section of the config.

    Args:
        neighbours: k; all training images where there are fewer.
        temperature: T.
    """

    needs: ClassVar[type[Any]] = Backbone
    task: ClassVar[str] = "classification"
    compared: ClassVar[Sequence[str]] = ("top1",)
    neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        check_settings(self, neighbours=at_least(1), temperature=above(0))

    def __call__(self, judged: Judged) -> Evaluated:
        """Return ``top1`` of the test images; the details have the nearest of some.

        These are ``queries``, positions of test images, and of each its ``nearest`` training
        images' positions, the nearest first.
        """
        train, test = judged.train, judged.test
        keys, hits = F.normalize(train.rows, dim=1), 0
        for rows, labels in zip(test.rows.split(_ROWS), test.labels.split(_ROWS), strict=True):
            cosines = F.normalize(rows, dim=1) @ keys.T  # (n, N)
            hits += int((self.scores(cosines, train.labels).argmax(1) == labels).sum())
        return Evaluated({"top1": hits / len(test.rows)}, nearest(keys, test.rows))

    def scores(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Return the scores (n, C) of cosines (n, N) to training images with labels (N,)."""
        best, which = cosines.topk(min(self.neighbours, cosines.shape[1]), dim=1)  # (n, k)
        votes = torch.exp((best - best[:, :1]) / self.temperature)  # relative to the nearest's
        scores = votes.new_zeros(len(cosines), int(labels.max()) + 1)
        return scores.scatter_add_(1, labels[which], votes)


def nearest(keys: Tensor, rows: Tensor) -> dict[str, Any]:
    """Return some of the rows (n, d), evenly spread, and what is nearest to them of keys (N, d)."""
    queries = torch.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).long()
    cosines = F.normalize(rows[queries.to(rows.device)], dim=1) @ keys.T
    found = cosines.topk(min(NEAREST, len(keys)), dim=1).indices
    return {"queries": queries.tolist(), "nearest": found.tolist()}
