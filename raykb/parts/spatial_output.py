"""SAOL's output layer: class probabilities at every place, and the weight that each place has.

Kim, Baek, Kim, "Spatially Attentive Output Layer for Image Classification", CVPR 2020,
arXiv:2004.07570; its losses are in ``raykb/recognition/saol.py``.

    A_ij   = softmax over places of a(X^L)_ij
    Y_kij  = softmax over classes of y([r_l(X^l) for l])_kij
    yhat_k = sum_ij A_ij Y_kij           log yhat_k = logsumexp_ij (log A_ij + log Y_kij)

Symbols:
    X^l     maps of the last stages l of the network (C_l, h_l, w_l), X^L the last of them
    i, j    place of the grid of X^L (h, w);  k  class 1..K
    a       convolution 1 x 1 to m channels, batch norm, ReLU, convolution 3 x 3 to one
    r_l     X^l averaged to (h, w), convolution 1 x 1 to m channels, batch norm, ReLU
    y       convolution 3 x 3 of all r_l, to K channels

yhat is a mixture of probabilities and sums to 1: no softmax comes after it. What goes for logits is
log yhat, whose softmax is yhat again.

Reconstruction: the text gives the equations, the shapes and the scales; widths and kernels of a, r
and y are ours. With m = 64 the layer has as many parameters as the linear one of ResNet-50.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.parts.precision import at_least_float32, in_float32


class Evidence(NamedTuple):
    """What a network says of images at each place, and of the whole by its linear head."""

    attention: Tensor  # (N, 1, h, w), log A
    classes: Tensor  # (N, K, h, w), log Y
    logits: Tensor  # (N, K), of the linear head
    maps: Tensor  # (N, C, h, w), X^L


@in_float32
def log_mixture(attention: Tensor, classes: Tensor) -> Tensor:
    """Return log yhat (N, K) of log A (N, 1, h, w) and log Y (N, K, h, w)."""
    return (attention + classes).flatten(2).logsumexp(2)


def averaged(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Return maps (N, C, H, W) averaged to a grid (h, w) by area."""
    height, width = grid
    if maps.shape[2:] == (height, width):
        return maps  # which torch would copy cell by cell, forward and backward
    return F.adaptive_avg_pool2d(maps, (height, width))


def places(scores: Tensor) -> Tensor:
    """Return log A (N, 1, h, w) of scores of that shape: the log softmax over all places."""
    return at_least_float32(scores).flatten(1).log_softmax(1).view_as(scores)


class SpatialOutput(nn.Module):
    """The layer, from the maps of the last stages to log A and log Y.

    Args:
        widths: channels C_l of the maps, the last ones last.
        classes: K.
        width: m.
    """

    def __init__(self, widths: Sequence[int], classes: int, *, width: int) -> None:
        super().__init__()
        self.attention = place_scores(widths[-1], width)
        self.reductions = nn.ModuleList(_reduction(channels, width) for channels in widths)
        self.evidence = nn.Conv2d(width * len(widths), classes, 3, padding=1)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return log A (N, 1, h, w) and log Y (N, K, h, w) of maps (N, C_l, h_l, w_l)."""
        size = stages[-1].shape[2:]
        scales = [
            reduction(averaged(maps, size))
            for reduction, maps in zip(self.reductions, stages, strict=True)
        ]
        classes = at_least_float32(self.evidence(torch.cat(scales, 1)))
        return places(self.attention(stages[-1])), classes.log_softmax(1)


def place_scores(channels: int, width: int, *, bias: bool = False) -> nn.Sequential:
    """Return a, from maps (N, channels, h, w) to a score of each place (N, 1, h, w).

    Args:
        channels: of the maps.
        width: m.
        bias: whether a number is added to all scores, which a softmax over places does not see.
    """
    return nn.Sequential(*_reduction(channels, width), nn.Conv2d(width, 1, 3, padding=1, bias=bias))


def _reduction(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )
