"""Cutout: a square of an image is set to zero, and its label stays.

DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
arXiv:1708.04552.

    x' = M x         M is 0 in a square of L by L pixels around any pixel, 1 outside

The images are normalised, so zero is the mean colour, and the border cuts off the square.

Golden: L = 16 on 32 pixels: 0.1914 of an image are zero in the mean, a quarter at most.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raykb.engine.arguments import at_least, between, check_settings
from raykb.recognition.draws import boxes_around, centres, happens, outside
from raykb.recognition.mixture import Mixed, Mixture, check_images, mixture


def cutout(
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    size: int,
    probability: float = 1.0,
    per_sample: bool = True,
) -> Mixed:
    """Return images with holes, twice their labels, and shares of 1.

    The settings are those of :class:`Cutout`.

    Args:
        images: (N, C, H, W), normalised; they stay as they are.
        labels: (N,) classes, or (N, classes) probabilities.
        generator: of the CPU; it alone decides.

    Raises:
        ValueError: an argument is not what it must be.
    """
    mixing = Cutout(size=size, probability=probability, per_sample=per_sample)
    return mixing.draw(images, generator).applied(images, labels)


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """Cutout; a section of the config.

    Args:
        size: L in pixels, rounded down to even.
        probability: of a hole at all.
        per_sample: whether each image has a decision and a place of its own.
    """

    size: int = 16
    probability: float = 1.0
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_settings(self, size=at_least(1), probability=between(0, 1))

    def draw(self, images: Tensor, generator: torch.Generator) -> Mixture:
        """Return what becomes of a batch."""
        check_images(images)
        size, count = images.shape[2:], len(images) if self.per_sample else 1
        holes = happens(self.probability, count, generator)
        sides = (holes * self.size)[:, None].expand(count, 2)
        boxes = boxes_around(centres(size, count, generator), sides, size)
        return mixture(images, None, outside(boxes.to(images.device), size), torch.ones(1))
