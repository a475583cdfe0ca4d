"""From records to arrays; images that cannot be decoded are counted and named."""

import logging
from collections.abc import Sequence

import numpy as np

from raykb.data.decoding import BadImageError, decode_all
from raykb.data.images import ImageSet
from raykb.data.options import Options
from raykb.data.records import Records, bullets

logger = logging.getLogger(__name__)


def load(records: Records, options: Options) -> ImageSet:
    """Return the records with their images decoded, all of one size.

    Raises:
        ValueError: images are bad (all of them are counted, the first are named), or of different
            sizes while no ``image_size`` is set.
    """
    images, good, bad = decoded(records, options)
    return ImageSet(stack(images, good), good.labels, good.ids, good.classes, bad)


def decoded(
    records: Records, options: Options
) -> tuple[list[np.ndarray], Records, tuple[str, ...]]:
    """Return images (C, H, W) of any size, the records that they are of, and what others lack.

    Raises:
        ValueError: images are bad (all of them are counted, the first are named).
    """
    encoded = list(records.read(records.rows))
    results = decode_all(encoded, image_size=options.image_size, channels=options.channels)
    bad = [
        f"{records.origin(int(row))}: {result}"
        for row, result in zip(records.rows, results, strict=True)
        if isinstance(result, BadImageError)
    ]
    check_bad_images(bad, len(records), options)
    good = np.array([isinstance(result, np.ndarray) for result in results])
    images = [result for result in results if isinstance(result, np.ndarray)]
    return images, records.subset(np.flatnonzero(good)), tuple(bad)


def check_bad_images(bad: Sequence[str], total: int, options: Options) -> None:
    """Report the images that cannot be used: all are counted, the first ten are named.

    Raises:
        ValueError: there are some and none may be skipped, or there are no others.
    """
    if not bad:
        return
    report = f"{len(bad)} of {total} images cannot be used:{bullets(bad)}"
    if options.on_bad_image == "raise":
        raise ValueError(f"{report}\nRepair or remove them, or set on_bad_image to 'skip'")
    if len(bad) == total:
        raise ValueError(f"{report}\nNone is left: repair them")
    logger.warning("%s\nThey are skipped, as on_bad_image is 'skip'", report)


def stack(images: Sequence[np.ndarray], records: Records) -> np.ndarray:
    """Return the decoded images as one (N, C, H, W) array; among colour, grey is repeated."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        sizes.setdefault(image.shape[1:], []).append(position)
    if len(sizes) > 1:
        examples = [
            f"{size[0]} x {size[1]}: {len(found)} images, as "
            f"{records.origin(int(records.rows[found[0]]))}"
            for size, found in sizes.items()
        ]
        raise ValueError(
            f"the images have {len(sizes)} sizes (height x width):{bullets(examples)}\n"
            "Set image_size to scale and crop them to one"
        )
    channels = max(len(image) for image in images)
    stacked = np.empty((len(images), channels, *images[0].shape[1:]), np.uint8)
    for target, image in zip(stacked, images, strict=True):
        target[:] = image
    return stacked
