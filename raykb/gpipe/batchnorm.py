"""Deferred batch norm: running statistics of mini-batches, from micro-batches.

A pipeline normalises each micro-batch by itself; anything else would make its stages wait. The
running statistics, however, should be those of the whole mini-batch. So each micro-batch b leaves
its moments, and what they amount to is committed once a step::

    n_b, mean_b, M2_b   M2 is the sum of squared distances from the mean
    mean                = sum_b n_b mean_b / n                              n = sum_b n_b
    M2                  = sum_b M2_b + n_b (mean_b - mean)^2
    running_mean       <- (1 - f) running_mean + f mean                     f the momentum
    running_var        <- (1 - f) running_var  + f M2 / (n - 1)

The merge is that of Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances" (1979), for all parts at once, in float64.

Departures from the paper's library (Kim et al., arXiv 2004.09910): the variance is unbiased, as in
``nn.BatchNorm``, and does not cancel where the mean is large; a pipeline commits once a step even
if the batch has fewer micro-batches than it could; accumulators are not in the state dict.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from raykb.gpipe.checkpointing import is_recomputing


class _Moments(NamedTuple):
    number: int  # values of each channel
    centre: Tensor  # (channels,) near their mean
    offset: Tensor  # (channels,) of their mean from the centre
    squares: Tensor  # (channels,) sum of squared distances from the centre


def _moments(x: Tensor) -> _Moments:
    """Return the moments of each channel of ``x``, (N, channels, *), exact to its type.

    A mean is rounded to the type of ``x``, so it serves as a centre alone: what is summed are
    distances from it, which are as small as the data allow.
    """
    dims = [dim for dim in range(x.dim()) if dim != 1]
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    centre = x.mean(dims, keepdim=True)
    apart = x - centre
    offset = apart.mean(dims)
    return _Moments(x.numel() // x.shape[1], centre.flatten(), offset, apart.square_().sum(dims))


def _merged(parts: Sequence[_Moments], device: torch.device) -> _Moments:
    """Return the moments of all parts together, in float64, with the mean as their centre."""
    numbers = torch.tensor([[part.number] for part in parts], dtype=torch.float64, device=device)
    centres, offsets, squares = (
        torch.stack([tensor.to(device) for tensor in tensors]).double()
        for tensors in zip(*(part[1:] for part in parts), strict=True)
    )
    total = sum(part.number for part in parts)
    means = centres + offsets  # (parts, channels)
    mean = (numbers * means).sum(0) / max(total, 1)
    m2 = (squares + numbers * ((means - mean) ** 2 - offsets**2)).sum(0)
    return _Moments(total, mean, torch.zeros_like(mean), m2)


class DeferredBatchNorm(_BatchNorm):
    """Batch norm over (N, channels, *) whose running statistics are those of mini-batches.

    In training each call normalises its own input, and the running statistics change once every
    ``chunks`` calls, by what those calls saw together. Calls that recompute are not counted.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: weight of a mini-batch in the running statistics; None averages all of them.
        affine: whether there are a weight and a bias.
        chunks: calls that make up a mini-batch; None leaves it to :meth:`commit`, which is what a
            pipeline calls at the end of a step.

    Raises:
        ValueError: ``chunks`` is below 1.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        chunks: int | None = 1,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats=True)
        _check_chunks(chunks)
        self.chunks = chunks
        # Not buffers: those are saved, cast by .half(), and sent around by DDP at every call.
        self._seen: list[_Moments] = []

    @property
    def sum(self) -> Tensor:
        """Sum over what was seen since the last commit, (channels,)."""
        seen = self._moments_seen()
        return seen.centre * seen.number

    @property
    def sum_squares(self) -> Tensor:
        """Sum of squares over what was seen since the last commit, (channels,)."""
        seen = self._moments_seen()
        return seen.squares + seen.centre**2 * seen.number

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input``, (N, channels, *), normalised; by running statistics in evaluation.

        Raises:
            ValueError: it has fewer than two dimensions, or, in training, one value a channel.
        """
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if not self.training:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        output = functional.batch_norm(
            input, None, None, self.weight, self.bias, training=True, eps=self.eps
        )
        if not is_recomputing():
            with torch.no_grad():
                self._seen.append(_moments(input))
            if len(self._seen) == self.chunks:
                self.commit()
        return output

    @torch.no_grad()
    def _moments_seen(self) -> _Moments:
        device = self.running_mean.device
        nothing = torch.zeros(self.num_features, device=device)
        return _merged(self._seen or [_Moments(0, nothing, nothing, nothing)], device)

    @torch.no_grad()
    def commit(self) -> None:
        """Update the running statistics by what was seen since the last time, if anything was."""
        seen = self._moments_seen()
        self.discard()
        if seen.number == 0:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        variance = seen.squares / (seen.number - 1)
        for running, new in ((self.running_mean, seen.centre), (self.running_var, variance)):
            running.copy_(torch.lerp(running.double(), new, momentum))

    def discard(self) -> None:
        """Forget what was seen since the last commit."""
        self._seen = []

    def extra_repr(self) -> str:
        """Return the arguments, for ``repr``."""
        arguments = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{arguments}, chunks={self.chunks}"

    @classmethod
    def convert_deferred_batch_norm(cls, module: nn.Module, chunks: int | None = 1) -> nn.Module:
        """Replace every batch norm in ``module`` and return it, or what it is replaced by.

        The parameters and buffers stay the same objects, and hooks stay where they were.
        ``SyncBatchNorm``, other classes with a ``forward``, modules or state of their own,
        parametrized layers and those without running statistics are left as they are; so are
        deferred ones of the same ``chunks``.

        Raises:
            ValueError: ``chunks`` is below 1, or a lazy batch norm has not been run yet.
        """
        _check_chunks(chunks)
        return cls._converted(module, chunks, {})

    @classmethod
    def _converted(
        cls, module: nn.Module, chunks: int | None, done: dict[nn.Module, nn.Module]
    ) -> nn.Module:
        if module not in done:
            done[module] = module
            if isinstance(module, _BatchNorm) and cls._is_convertible(module, chunks):
                done[module] = cls._replacing(module, chunks)
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = cls._converted(child, chunks, done)
        return done[module]

    @classmethod
    def _is_convertible(cls, module: _BatchNorm, chunks: int | None) -> bool:
        if isinstance(module, DeferredBatchNorm):
            return module.chunks != chunks
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ValueError(
                f"{module}: has no channels yet; run the model once on a batch before its batch "
                "norm is deferred"
            )
        kind = type(module)
        plain = kind.forward is _BatchNorm.forward and not module._modules
        plain = plain and kind.get_extra_state is nn.Module.get_extra_state
        return plain and module.running_mean is not None

    @classmethod
    def _replacing(cls, module: _BatchNorm, chunks: int | None) -> "DeferredBatchNorm":
        deferred = cls.__new__(cls)
        deferred.__dict__ = module.__dict__ | {  # with its hooks, and whatever else hangs on it
            "_parameters": dict(module._parameters),
            "_buffers": dict(module._buffers),
            "chunks": chunks,
            "_seen": [],
        }
        return deferred


def _check_chunks(chunks: int | None) -> None:
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks: {chunks}, must be at least 1, or None to commit yourself")


def deferred_layers(module: nn.Module) -> list[DeferredBatchNorm]:
    """Return the deferred batch norms of ``module``, in its order."""
    return [layer for layer in module.modules() if isinstance(layer, DeferredBatchNorm)]


def commit_statistics(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Commit all deferred batch norms of ``module``, at the end of a step.

    Args:
        module: the same on all ranks of ``group``.
        group: data-parallel replicas, which each saw a share of the mini-batch, or none of it:
            all get the statistics of the whole one, by one collective for all layers together.
    """
    layers = deferred_layers(module)
    if group is not None and layers:
        _merge_over(group, layers)
    for layer in layers:
        layer.commit()


@torch.no_grad()
def _merge_over(group: dist.ProcessGroup, layers: list[DeferredBatchNorm]) -> None:
    device = layers[0].running_mean.device
    seen = [layer._moments_seen() for layer in layers]
    # Numbers of values in float64 are exact to 2^53, so that one collective carries all.
    numbers = torch.tensor([own.number for own in seen], dtype=torch.float64, device=device)
    own = torch.cat([numbers, *(own.centre for own in seen), *(own.squares for own in seen)])
    everyone = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(everyone, own, group=group)
    sizes = [len(layers), *[layer.num_features for layer in layers] * 2]
    parts = [one.split(sizes) for one in everyone]
    for i, layer in enumerate(layers, 1):
        layer._seen = [
            _Moments(int(part[0][i - 1]), part[i], torch.zeros_like(part[i]), part[i + len(layers)])
            for part in parts
        ]
