"""What transformers are made of: blocks, drop path, and fixed positions."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Leave a branch out for whole samples, and make the others larger so that the mean stays.

    Huang et al., "Deep networks with stochastic depth", ECCV 2016, arXiv:1603.09382.

    Args:
        rate: share of the samples of a training batch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, ...)."""
        if not self.training or not self.rate:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept.to(x.dtype) / (1.0 - self.rate)


class Block(nn.Module):
    """Add to tokens what attention makes of their norm, then what a perceptron makes of the norm.

    Its parameters have the names of torchvision's.

    Args:
        width: of the tokens.
        heads: of the attention; they divide the width.
        hidden: width of the perceptron's hidden layer.
        drop_path: share of the samples for which a branch is left out.
    """

    def __init__(self, width: int, heads: int, *, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        layers = {"0": nn.Linear(width, hidden), "1": nn.GELU(), "3": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))  # torchvision's have dropout between
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return tokens (N, S, width); no token heeds those where ``padding`` (N, S) is true."""
        normed = self.ln_1(x)
        attended, _ = self.self_attention(
            normed, normed, normed, key_padding_mask=padding, need_weights=False
        )
        x = x + self.drop_path(attended)
        out: Tensor = x + self.drop_path(self.mlp(self.ln_2(x)))
        return out


def sine_cosine_positions(
    height: int, width: int, channels: int, *, device: torch.device | None = None
) -> Tensor:
    """Return what tells the places of a grid apart, (height * width, channels), row by row.

    Half of the channels are of the column and half of the row; of each, ``sin(p w_k)`` and then
    ``cos(p w_k)`` with ``w_k = 10000^(-4 k / channels)``, for k below a quarter of the channels
    (Vaswani et al., NeurIPS 2017, section 3.5; in two dimensions as Chen et al., ICCV 2021).

    Raises:
        ValueError: the channels are no multiple of 4.
    """
    if channels % 4:
        raise ValueError(
            f"channels: {channels}; must be a multiple of 4, a sine and a cosine for each of row "
            "and column"
        )
    waves = 10000.0 ** -(
        torch.arange(channels // 4, dtype=torch.float64, device=device) * 4 / channels
    )
    row, column = (
        torch.arange(count, dtype=torch.float64, device=device) for count in (height, width)
    )
    places = torch.stack([column.repeat(height), row.repeat_interleave(width)], 1)  # (T, 2)
    angles = places[:, :, None] * waves  # (T, 2, channels / 4)
    return torch.cat([angles.sin(), angles.cos()], 2).flatten(1).float()
