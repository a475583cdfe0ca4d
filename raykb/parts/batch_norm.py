"""Batch norm over the rows of all ranks, on any device.

Ioffe, Szegedy, "Batch normalization", ICML 2015, arXiv:1502.03167, with the statistics of the whole
batch, however many ranks share it.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from raykb.parts.gather import gather, ranks
from raykb.parts.precision import at_least_float32


class BatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` of rows (N, d) whose mean and variance are those of all ranks' rows.

    ``nn.SyncBatchNorm`` does so on GPUs alone. Each rank must have as many rows as the others.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows (N, d), normalised."""
        if not self.training or ranks() == 1:
            return super().forward(rows)
        exact = at_least_float32(rows)
        mean = gather(exact.mean(0, keepdim=True)).mean(0)  # (d,)
        centred = exact - mean
        variance = gather(centred.square().mean(0, keepdim=True)).mean(0)
        self._follow(mean, variance, len(rows) * ranks())
        normal = centred / (variance + self.eps).sqrt()
        normal = normal if self.weight is None else normal * self.weight + self.bias
        return normal.to(rows.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        unbiased = variance * count / (count - 1)
        for own, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            if own is not None:
                own.lerp_(new.to(own.dtype), self.momentum or 0.0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


@contextlib.contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Have batch norm normalise by the batch, and its running statistics stay as they are.

    For a second pass in one step, of images that only say what others should be.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _NormBase) and module.track_running_stats and module.training
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
