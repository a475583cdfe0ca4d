"""What classifiers see of a step whose images may be mixed."""

from typing import NamedTuple

from torch import Tensor


class SoftBatch(NamedTuple):
    """A rank's share of a step, with the share that each class has of an image."""

    images: Tensor  # (N, C, H, W) float
    targets: Tensor  # (N, classes) float, rows sum to 1


class MixedBatch(NamedTuple):
    """The same, and where an image is its own, and whose it is elsewhere."""

    images: Tensor  # (N, C, H, W) float
    targets: Tensor  # (N, classes) float, rows sum to 1
    masks: Tensor  # (N, 1, H, W) or (N, 1, 1, 1), 1 where an image is its own
    donors: Tensor  # (N, C, H, W) float, which is there where the masks are 0


class PairBatch(NamedTuple):
    """A rank's share of a step of images and texts that belong together, or do not."""

    images: Tensor  # (N, C, H, W) float
    false_images: Tensor  # (N, C, H, W) float, of other pairs drawn at random
    tokens: Tensor  # (N, L) int64, 0 is padding
    words: Tensor  # (N, L) int64, the number of the word that a token is of, -1 of none
    masked: Tensor  # (N, L) int64, tokens some of whose words are hidden
    hidden: Tensor  # (N, L) int64, what was hidden, -100 elsewhere
    lots: Tensor  # (N,) float, which pairs are made false ones: the last
    sizes: Tensor  # (N, 2) int64, height and width of an image, at the top left of padding
    false_sizes: Tensor  # (N, 2) int64, of the others
    patch_lots: Tensor  # (N, 2, T) float, which patches are seen in either pass; T 0 for all
