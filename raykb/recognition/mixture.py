"""What becomes of a batch whose images are mixed with each other, however that is drawn.

    x'_i = m_i x_i + (1 - m_i) d_i          d_i = x_o(i), or 0 where nothing is put in
    t'_i = k_i t_i + (1 - k_i) t_o(i)

Symbols:
    x_i, t_i   image i (C, H, W), normalised, and its one-hot label (K,), i = 1..N
    o          a permutation of the batch, or nothing
    m_i        of each pixel (1, H, W) the share that is kept: 0 or 1 in CutMix and Cutout, the same
               in all of an image in MixUp
    k_i        share of its own label that is kept
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.engine.arguments import refuse


class Mixed(NamedTuple):
    """Images that were mixed, and of which labels they are."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N, ...), of the images as they were
    others: Tensor  # (N, ...), of what was mixed in
    kept: Tensor  # (N,), the share of ``labels``; the rest is of ``others``


class Mixture(NamedTuple):
    """What is mixed with what, on the device of the images."""

    order: Tensor | None  # (N,) int64, o; None: labels stay, and what is taken away is 0
    masks: Tensor  # (N, 1, H, W) bool or (N, 1, 1, 1) floating point, m
    kept: Tensor  # (N,), k

    def donors(self, images: Tensor) -> Tensor:
        """Return d, (N, C, H, W)."""
        if self.order is None:
            return torch.zeros_like(images)
        return images.index_select(0, self.order)

    def blended(self, images: Tensor, donors: Tensor) -> Tensor:
        """Return x', (N, C, H, W); where m is 1 it is x bit for bit, and the input stays."""
        if self.masks.dtype == torch.bool:
            return torch.where(self.masks, images, donors)
        return torch.lerp(donors, images, self.masks)

    def applied(self, images: Tensor, labels: Tensor) -> Mixed:
        """Return images and labels as they are mixed."""
        blended = self.blended(images, self.donors(images))
        return Mixed(blended, labels, self.others(labels), self.kept)

    def others(self, labels: Tensor) -> Tensor:
        """Return the labels of what is mixed in."""
        return labels if self.order is None else labels[self.order]

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Return t', (N, classes), of labels (N,)."""
        own, other = (F.one_hot(each, classes) for each in (labels, self.others(labels)))
        kept = self.kept[:, None]
        return kept * own + (1.0 - kept) * other


class Mixing(Protocol):
    """How batches are mixed; a row of ``MIXINGS``, whose settings are a section of the config."""

    def draw(self, images: Tensor, generator: torch.Generator) -> Mixture:
        """Return what becomes of a batch; the generator is one of the CPU."""
        ...


@dataclass(frozen=True)
class Unmixed:
    """Nothing is mixed."""

    def draw(self, images: Tensor, generator: torch.Generator) -> Mixture:
        """Return a mixture that keeps all; nothing is drawn."""
        check_images(images)
        masks = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=images.device)
        return mixture(images, None, masks, torch.ones(1))


def mixture(images: Tensor, order: Tensor | None, masks: Tensor, kept: Tensor) -> Mixture:
    """Return the mixture of a batch, of what was drawn on the CPU for each image or for all.

    Args:
        images: (N, C, H, W).
        order: (N,), or None.
        masks: (N or 1, 1, H or 1, W or 1), on the device of the images already.
        kept: (N or 1,).
    """
    count = len(images)
    return Mixture(
        None if order is None else order.to(images.device),
        masks.expand(count, -1, -1, -1),
        kept.to(images).expand(count),
    )


def check_images(images: Tensor) -> None:
    """Raise ValueError unless images are (N, C, H, W) of floating-point numbers."""
    if images.ndim != 4 or not images.is_floating_point():
        refuse(
            [
                f"images: {images.dtype} of shape {tuple(images.shape)}, must be floating-point "
                "numbers of shape (N, C, H, W); mix after normalisation"
            ]
        )
