"""Where a token is, said by fixed waves."""

import torch
from torch import Tensor


def sine_cosine_positions(height: int, width: int, channels: int) -> Tensor:
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
    waves = 10000.0 ** -(torch.arange(channels // 4, dtype=torch.float64) * 4 / channels)
    row = torch.arange(height, dtype=torch.float64).repeat_interleave(width)  # (T,)
    column = torch.arange(width, dtype=torch.float64).repeat(height)
    angles = torch.stack([column, row], 1)[:, :, None] * waves  # (T, 2, channels / 4)
    return torch.cat([angles.sin(), angles.cos()], 2).flatten(1).float()
