"""SCRL: the same region of an image looks the same in two views of it.

Roh, Shin, Kim, Kim, "Spatially Consistent Representation Learning", CVPR 2021, arXiv:2103.06122.

    L      = 1/M sum_i [ l(p_1i, k_2i) + l(p_2i, k_1i) ]
    l(p,k) = 2 - 2 cos(p, k),   no gradient of k
    p_vi   = q(g(r(f(x_v), B_vi))),   k_vi = g'(r(f'(x_v), B_vi))
    f', g' <- m (f', g') + (1 - m) (f, g),   m = 1 - (1 - m_0) (cos(pi t / T) + 1) / 2

Symbols:
    x_v        view v = 1, 2 of an image
    B_vi       box i in view v; M of them in all images of a batch, the same regions in both views
    f          network, to maps (D, h, w);  r: their mean in a box (RoI align), (D,)
    g, q       projection, (D,) to (d,), and predictor: linear, batch norm, ReLU, linear
    f', g'     the teacher of f and g
    m, t, T    momentum at step t of T

Images whose views have no region in common drop out. A batch of none has the loss 0, of which no
parameter has a gradient: but for the optimizer's momentum and decay, such a step is none.

State: the teacher.

Departures:
    - the teacher starts as a copy of the network (official code: from weights of its own).
    - heads are smaller by default (paper: 4096 hidden), and batch norm sees both views together.
    - maps are of the network's own stride, which a box need not be a multiple of.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import at_least, between, check_settings, within
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import WithMaps, require
from raykb.parts.gather import gather
from raykb.parts.matched_boxes import matched_boxes
from raykb.parts.precision import in_float32
from raykb.parts.regions import regions
from raykb.parts.teacher import cosine_momentum, follow, teacher_of
from raykb.selfsup.batch import BoxesBatch
from raykb.selfsup.collapse import feature_std

__all__ = ["SCRL", "matched_boxes", "regions", "scrl_loss"]


@in_float32
def scrl_loss(first: Tensor, second: Tensor, target_1: Tensor, target_2: Tensor) -> Tensor:
    """Return L, a scalar in [0, 8].

    Args:
        first: p_1, (M, d).
        second: p_2.
        target_1: k_1, (M, d), which gets no gradient.
        target_2: k_2.
    """
    pairs = ((first, target_2), (second, target_1))
    losses = [2 - 2 * F.cosine_similarity(p, k.detach(), dim=1) for p, k in pairs]  # (M,) each
    return (losses[0] + losses[1]).mean()


class SCRL(Objective):
    """SCRL.

    Args:
        task: what it is told; its network must have maps.
        momentum: m_0 (paper: 0.97 for 200 epochs, 0.996 for 1000).
        projection: width d of the projections.
        hidden: width of the hidden layers of g and q.
        count: boxes of each image.
        least: shortest side of a box in pixels of the coarser view; a cell of the maps.
        grid: whether boxes are drawn in the cells of a grid; else plainly.
        overlap: greatest IoU of two boxes of an image, if it can be kept.
        jitter: greatest change of a box of the second view, as a share of its sides.
        aligned: whether maps are read half a cell further to the upper left, where the views of
            mirrored boxes agree; the official code does not.
    """

    sees = BoxesBatch

    def __init__(
        self,
        task: Task,
        *,
        momentum: float = 0.97,
        projection: int = 256,
        hidden: int = 512,
        count: int = 10,
        least: int = 32,
        grid: bool = True,
        overlap: float = 0.5,
        jitter: float = 0.0,
        aligned: bool = False,
    ) -> None:
        super().__init__(task)
        self.momentum, self.steps = momentum, task.steps
        self.projection, self.hidden = projection, hidden
        self.count, self.least, self.grid = count, least, grid
        self.overlap, self.jitter, self.aligned = overlap, jitter, aligned
        positive = dict.fromkeys(("projection", "hidden", "count", "least"), at_least(1))
        shares = dict.fromkeys(("momentum", "overlap"), between(0, 1))
        check_settings(self, **positive, jitter=within(0, 1), **shares)
        width = require(task.network, WithMaps, "scrl").map_width
        self.head = _head(width, hidden, projection)
        self.predictor = _head(projection, hidden, projection)
        self.teacher, self.teacher_head = teacher_of(task.network), teacher_of(self.head)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, the share ``matched`` of images with regions, and ``feature_std``."""
        pooled = self._pooled(network, batch)  # (N, 2, K, D)
        valid = gather(batch.valid.byte())
        rows = valid.nonzero()[:, 0]  # the one wait for the device: batch norm sees these alone
        terms = {
            "matched": valid.float().mean(),
            "feature_std": feature_std(pooled.mean((1, 2))),
        }
        if not len(rows):
            return {"loss": pooled[:0].sum() + self._nothing()} | terms
        both = _by_view(gather(pooled)[rows])  # (2 M, D)
        first, second = self.predictor(self.head(both)).chunk(2)
        with torch.no_grad():
            targets = _by_view(gather(self._pooled(self.teacher, batch))[rows])
            target_1, target_2 = self.teacher_head(targets).chunk(2)
        return {"loss": scrl_loss(first, second, target_1, target_2)} | terms

    def after_step(self, network: nn.Module, step: int) -> None:
        """Let the teacher follow."""
        momentum = cosine_momentum(self.momentum, step, self.steps)
        follow(self.teacher, network, momentum)
        follow(self.teacher_head, self.head, momentum)

    def _pooled(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the means of the maps of both views in all boxes, (N, 2, K, D)."""
        views = batch.views.flatten(0, 1)
        maps = require(network, WithMaps, "scrl").maps(views)
        boxes = batch.boxes.flatten(0, 1)
        found = regions(maps, boxes, views.shape[3], aligned=self.aligned)
        by_image: Tensor = found.unflatten(0, batch.views.shape[:2])
        return by_image

    def _nothing(self) -> Tensor:
        """Return 0 with a gradient of 0, which ranks that share parameters wait for."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.stack([parameter.flatten()[:0].sum() for parameter in trained]).sum()


def _head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return a head; its rows are those of all ranks, so plain batch norm is theirs, too."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs, bias=False),
    )


def _by_view(pooled: Tensor) -> Tensor:
    """Return (N, 2, K, D) as (2 N K, D), all regions of the first view first."""
    return pooled.transpose(0, 1).flatten(0, 2)
