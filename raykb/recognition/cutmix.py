"""CutMix: a box of an image is filled with that of another, and labels are mixed by area.

Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with
Localizable Features", ICCV 2019, arXiv:1905.04899.

    x' = M x_A + (1 - M) x_B,   y' = lambda y_A + (1 - lambda) y_B                          (1)
    r_x ~ U(0, W),  r_w = W sqrt(1 - lambda);   r_y ~ U(0, H),  r_h = H sqrt(1 - lambda)     (2)

Symbols:
    x_A, x_B   an image and its partner, by a random permutation of the batch
    M          (H, W), 0 in the box around (r_x, r_y) of r_w by r_h pixels, 1 outside
    lambda     ~ Beta(alpha, alpha); then, for the labels, the share of M that is 1

Departures:
    - from the text, as the official code has it: r_x and r_y are the centre of the box and whole
      pixels, the box is cut off at the border, and lambda is counted again afterwards
      (``correct_lam``); one decision, lambda and box for a batch, or for each image on request.

Golden: alpha = 1, images of 32 pixels: over the draws the labels' lambda is 0.7005 in the mean
(0.679 of continuous boxes, 0.5 if it was not counted again), and 4 of 1024 boxes are empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raykb.engine.arguments import above, between, check_settings
from raykb.recognition.draws import beta, boxes_around, centres, happens, outside, uncovered
from raykb.recognition.mixture import Mixed, Mixture, check_images, mixture


def cutmix(
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    probability: float,
    alpha: float,
    per_sample: bool = False,
    correct_lam: bool = True,
) -> Mixed:
    """Return mixed images, both labels and the kept share of the first.

    The settings are those of :class:`CutMix`.

    Args:
        images: (N, C, H, W), normalised; they stay as they are.
        labels: (N,) classes, or (N, classes) probabilities.
        generator: of the CPU; it alone decides.

    Raises:
        ValueError: an argument is not what it must be.
    """
    mixing = CutMix(
        probability=probability, alpha=alpha, per_sample=per_sample, correct_lam=correct_lam
    )
    return mixing.draw(images, generator).applied(images, labels)


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """CutMix; a section of the config.

    Args:
        probability: of mixing at all; the paper's 0.5 for CIFAR, 1 for ImageNet.
        alpha: of lambda's distribution.
        per_sample: whether each image has a decision, lambda and box of its own.
        correct_lam: whether lambda is counted again after the border has cut off the box.
    """

    probability: float = 0.5
    alpha: float = 1.0
    per_sample: bool = False
    correct_lam: bool = True

    def __post_init__(self) -> None:
        check_settings(self, alpha=above(0), probability=between(0, 1))

    def draw(self, images: Tensor, generator: torch.Generator) -> Mixture:
        """Return what becomes of a batch."""
        check_images(images)
        size, count = images.shape[2:], len(images) if self.per_sample else 1
        mixes = happens(self.probability, count, generator)
        lam = torch.where(mixes, beta(self.alpha, count, generator), 1.0)  # (count,)
        boxes = boxes_around(centres(size, count, generator), cut_sides(lam, size), size)
        kept = uncovered(boxes, size) if self.correct_lam else lam
        order = torch.randperm(len(images), generator=generator)
        return mixture(images, order, outside(boxes.to(images.device), size), kept)


def cut_sides(lam: Tensor, size: Sequence[int]) -> Tensor:
    """Return (n, 2) int64: height and width of boxes that keep a share ``lam`` (n,) of the area."""
    return ((1.0 - lam).sqrt()[:, None] * torch.tensor(size)).long()
