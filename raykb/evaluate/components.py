"""What is left of a segmentation after all but the largest piece of a label is taken away.

It helps where there is one organ, and harms where there are several lesions; which it is,
cross-validation says (nnU-Net).
"""

from collections.abc import Collection, Sequence

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped]


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected piece of a boolean mask; of equal ones the first.

    Voxels that touch at a corner are connected. An empty mask stays empty.
    """
    pieces, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    if count < 2:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    largest: np.ndarray = pieces == 1 + sizes.argmax()
    return largest


def largest_components(segmentation: np.ndarray, labels: Collection[int]) -> np.ndarray:
    """Return a segmentation with the largest piece alone of each of ``labels``; the rest is 0.

    Args:
        segmentation: numbers of labels.
        labels: those for which it helps.
    """
    kept: np.ndarray = segmentation.copy()
    for label in labels:
        mask = segmentation == label
        kept[mask & ~largest_component(mask)] = 0
    return kept


def helps(plain: Sequence[float], processed: Sequence[float]) -> bool:
    """Return whether processed segmentations have the higher mean score in cross-validation.

    Args:
        plain: score of a label in each held-out case, as it was predicted; NaN where undefined.
        processed: the same of the largest piece alone.

    Raises:
        ValueError: they are not of the same cases.
    """
    before, after = np.array(plain, np.float64), np.array(processed, np.float64)
    if before.shape != after.shape:
        raise ValueError(
            f"plain, processed: {before.size} and {after.size} scores, must be of the same cases"
        )
    defined = np.isfinite(before) & np.isfinite(after)
    return bool(after[defined].sum() > before[defined].sum())
