"""The size that ViLT gives an image (Kim, Son, Kim, ICML 2021, section 4.1, as its code has it)."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image


def scaled_size(height: int, width: int, *, shorter: int = 384, patch: int = 32) -> tuple[int, int]:
    """Return height and width: the shorter side as wanted, the longer limited, whole patches.

    The longer side is at most ``int(1333 / 800 * shorter)``; sides are rounded half up and then
    down to multiples of the patch. A side that would have no patch has one.

    Golden: 480 x 640 gives 384 x 512; 384 x 640 gives 352 x 608; none has more than 228 patches.
    """
    limit = _longest(shorter)
    scale = shorter / min(height, width)
    if scale * max(height, width) > limit:
        scale = limit / max(height, width)
    rounded = (math.floor(side * scale + 0.5) for side in (height, width))
    first, second = (max(side // patch, 1) * patch for side in rounded)
    return first, second


def largest_side(shorter: int, patch: int) -> int:
    """Return the longest side that :func:`scaled_size` gives."""
    return _longest(shorter) // patch * patch


def _longest(shorter: int) -> int:
    return int(1333 / 800 * shorter)


def scaled(image: np.ndarray, *, shorter: int, patch: int) -> np.ndarray:
    """Return an image (C, H, W) uint8 of its :func:`scaled_size`, bicubic."""
    height, width = scaled_size(*image.shape[1:], shorter=shorter, patch=patch)
    size, bicubic = (width, height), Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(plane).resize(size, bicubic)) for plane in image])


def padded(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return images (C, H, W) at the top left of the largest, (N, C, H, W), and their sizes (N, 2).

    Where some have colour, grey is repeated; padding is 0.
    """
    sizes = np.array([image.shape[1:] for image in images], np.int64)
    channels = max(len(image) for image in images)
    out = np.zeros((len(images), channels, *sizes.max(0)), np.uint8)
    for target, image in zip(out, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    return out, sizes
