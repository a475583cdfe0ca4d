"""SimMIM: of an image with hidden squares, say their pixels by a linear layer.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu, "SimMIM: a Simple Framework for Masked Image Modeling",
CVPR 2022, arXiv:2111.09886.

    L  = 1/|M| sum_{k in M} |y_k - x_k|                                                      (1)
    y  = W f([e(x_t) or m] + p)                              m where patch t is hidden

Symbols:
    x_k, y_k   pixel and prediction; M: pixels of hidden patches
    e, p, f    the network's embedding of patches, its positions, and its blocks
    m          mask token, (width,)
    W          linear layer to the pixels of a patch, (C patch^2,)

Departures:
    - none in the loss. Official code adds 1e-5 to |M|, which is not 0 here.
    - ``unit`` counts patches where the paper counts pixels: its 32 are two patches of 16.
"""

import torch
from torch import Tensor, nn

from raykb.engine.arguments import at_least, check_settings, within
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import WithPatches, require
from raykb.parts.patches import patched
from raykb.parts.precision import in_float32
from raykb.selfsup.batch import MaskedBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.reconstruction import mean_where


@in_float32
def simmim_loss(predicted: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Return L, a scalar, of patches (N, T, P) and of which are hidden (N, T)."""
    return mean_where((predicted - wanted).abs(), mask[:, :, None])


class SimMIM(Objective):
    """SimMIM.

    Args:
        task: what it is told; its network must have patches.
        mask_ratio: share of the image that is hidden, rounded up to whole squares.
        unit: patches on each side of a square that is hidden as a whole.

    Attributes:
        patch: side of a patch in pixels.
    """

    sees = MaskedBatch

    def __init__(self, task: Task, *, mask_ratio: float = 0.6, unit: int = 2) -> None:
        super().__init__(task)
        self.mask_ratio, self.unit = mask_ratio, unit
        check_settings(self, mask_ratio=within(0, 1), unit=at_least(1))
        network = require(task.network, WithPatches, "simmim")
        self.patch = network.patch
        self.mask_token = nn.Parameter(torch.empty(network.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(network.width, network.channels * self.patch**2)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``, which is of the mean of the tokens."""
        backbone = require(network, WithPatches, "simmim")
        images, mask = batch.images, batch.mask
        embedded = backbone.embed(images)  # (N, T, width)
        shown = torch.where(mask[:, :, None], self.mask_token.to(embedded), embedded)
        encoded = backbone.encode(shown + backbone.positions(images))
        return {
            "loss": simmim_loss(self.head(encoded), patched(images, self.patch), mask),
            "feature_std": feature_std(encoded.mean(1)),
        }
