"""MixUp: images and labels are averaged with those of another image.

Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
arXiv:1710.09412.

    x' = lambda x_i + (1 - lambda) x_j,   y' = lambda y_i + (1 - lambda) y_j             (section 2)

Symbols:
    x_i, x_j   an image and its partner, by a random permutation of the batch
    lambda     ~ Beta(alpha, alpha), one for a batch, or one for each image on request

``dominant`` takes the larger of lambda and 1 - lambda, as the code of Fast AutoAugment does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raykb.engine.arguments import above, between, check_settings
from raykb.recognition.draws import beta, happens
from raykb.recognition.mixture import Mixed, Mixture, check_images, mixture


def mixup(
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    probability: float,
    alpha: float,
    per_sample: bool = False,
    dominant: bool = False,
) -> Mixed:
    """Return averaged images, both labels and the share of the first.

    The settings are those of :class:`MixUp`.

    Args:
        images: (N, C, H, W), normalised; they stay as they are.
        labels: (N,) classes, or (N, classes) probabilities.
        generator: of the CPU; it alone decides.

    Raises:
        ValueError: an argument is not what it must be.
    """
    mixing = MixUp(probability=probability, alpha=alpha, per_sample=per_sample, dominant=dominant)
    return mixing.draw(images, generator).applied(images, labels)


@dataclass(frozen=True, kw_only=True)
class MixUp:
    """MixUp; a section of the config.

    Args:
        probability: of mixing at all.
        alpha: of lambda's distribution.
        per_sample: whether each image has a decision and lambda of its own.
        dominant: whether an image has at least half of its mixture.
    """

    probability: float = 1.0
    alpha: float = 1.0
    per_sample: bool = False
    dominant: bool = False

    def __post_init__(self) -> None:
        check_settings(self, alpha=above(0), probability=between(0, 1))

    def draw(self, images: Tensor, generator: torch.Generator) -> Mixture:
        """Return what becomes of a batch."""
        check_images(images)
        count = len(images) if self.per_sample else 1
        mixes = happens(self.probability, count, generator)
        lam = torch.where(mixes, beta(self.alpha, count, generator), 1.0)  # (count,)
        if self.dominant:
            lam = lam.maximum(1.0 - lam)
        order = torch.randperm(len(images), generator=generator)
        return mixture(images, order, lam.to(images)[:, None, None, None], lam)
