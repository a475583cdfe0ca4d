"""A data set before its images are decoded: choose rows first, pay for decoding after.

A source (:mod:`raykb.data.datasets`) returns its training and test :class:`Records`;
:class:`Options` says which rows of them are wanted and in what form; :func:`load` decodes these.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raykb.data.decoding import BadImageError, Encoded, decode_all
from raykb.data.images import ImageSet
from raykb.data.splits import stratified_subset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Records:
    """N labelled images, not decoded yet.

    Attributes:
        rows: (N,) positions in the source, ascending.
        labels: (N,) int64.
        ids: (N,) int64.
        classes: names of the classes, in the order of the labels.
        read: yields the images of such rows, in that order.
        origin: says in words where a row is from, for messages.
    """

    rows: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    read: Callable[[np.ndarray], Iterable[Encoded]]
    origin: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: np.ndarray) -> "Records":
        """Return the records at ``indices``, ascending positions among these."""
        return replace(
            self, rows=self.rows[indices], labels=self.labels[indices], ids=self.ids[indices]
        )

    def keep_classes(self, labels: Sequence[int]) -> "Records":
        """Return the records of the classes ``labels``, numbered anew in the order given."""
        numbers = np.full(len(self.classes), -1, np.int64)
        numbers[list(labels)] = np.arange(len(labels))
        kept = self.subset(np.flatnonzero(numbers[self.labels] >= 0))
        names = tuple(self.classes[label] for label in labels)
        return replace(kept, labels=numbers[kept.labels], classes=names)


def array_records(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], name: str
) -> Records:
    """Return the records of pixels (N, H, W) or (N, H, W, 3); positions become ids."""
    rows = np.arange(len(labels))
    return Records(
        rows,
        labels.astype(np.int64),
        rows,
        tuple(classes),
        lambda rows: images[rows],
        lambda row: f"{name}, image {row}",
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which images of a data set are wanted and in what form; every data set takes these.

    Attributes:
        image_size: scale to cover a square of this many pixels and cut out its centre.
        channels: 1 (colour becomes luminance) or 3 (grey is repeated).
        train_size: a stratified draw of so many training images, from all classes.
        test_size: the same for the test set.
        classes: then keep the classes of these names, numbered in this order, ...
        num_classes: ... or so many classes, drawn at random. (Fast AutoAugment's reduced ImageNet:
            50000 training images, of which those of 120 classes are kept.)
        subset_seed: of the draws of images and classes.
        on_bad_image: ``raise``, or ``skip`` to leave out what cannot be decoded and say so.
    """

    image_size: int | None = None
    channels: int | None = None
    train_size: int | None = None
    test_size: int | None = None
    classes: list[str] | None = None
    num_classes: int | None = None
    subset_seed: int = 0
    on_bad_image: str = "raise"

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value!r}, must be a positive integer"
            for name in ("image_size", "train_size", "test_size", "num_classes")
            if (value := getattr(self, name)) is not None
            and not (isinstance(value, int) and value > 0)
        ]
        if self.subset_seed < 0:
            problems.append(f"subset_seed={self.subset_seed!r}, must not be negative")
        if self.channels not in (None, 1, 3):
            problems.append(f"channels={self.channels!r}, must be 1 or 3")
        if self.on_bad_image not in ("raise", "skip"):
            problems.append(f"on_bad_image={self.on_bad_image!r}, must be 'raise' or 'skip'")
        if self.classes is not None and self.num_classes is not None:
            problems.append("classes and num_classes, of which only one can be given")
        if problems:
            raise ValueError("the data set was asked for with:\n  - " + "\n  - ".join(problems))

    def select(self, train: Records, test: Records) -> tuple[Records, Records]:
        """Return the training and test records that are wanted."""
        kept = self._class_labels(train.classes)
        return self._draw(train, "train_size", kept), self._draw(test, "test_size", kept)

    def _draw(self, records: Records, option: str, kept: Sequence[int] | None) -> Records:
        if (size := getattr(self, option)) is not None:
            try:
                drawn = stratified_subset(records.labels, size, seed=self.subset_seed)
            except ValueError as error:
                raise ValueError(f"{option}: {error}") from error
            records = records.subset(drawn)
        return records if kept is None else records.keep_classes(kept)

    def _class_labels(self, names: tuple[str, ...]) -> Sequence[int] | None:
        if self.num_classes is not None:
            if self.num_classes > len(names):
                raise ValueError(
                    f"num_classes={self.num_classes}, but the set has {len(names)} classes"
                )
            drawn = np.random.default_rng(self.subset_seed).permutation(len(names))
            return sorted(drawn[: self.num_classes].tolist())
        if self.classes is None:
            return None
        unknown = [name for name in self.classes if name not in names]
        if unknown or not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"classes={self.classes}: must name some of the set's classes, each once; "
                f"{unknown or 'none'} unknown. The set has {list(names)}"
            )
        return [names.index(name) for name in self.classes]


def load(records: Records, options: Options) -> ImageSet:
    """Return the records with their images decoded, all of one size.

    Raises:
        ValueError: images are bad (all of them are counted, the first are named), or of different
            sizes while no ``image_size`` is set.
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
    return ImageSet(
        stack(images, records.subset(np.flatnonzero(good))),
        records.labels[good],
        records.ids[good],
        records.classes,
        tuple(bad),
    )


def check_bad_images(bad: Sequence[str], total: int, options: Options) -> None:
    """Report the images that cannot be used: all are counted, the first ten are named.

    Raises:
        ValueError: there are some and none may be skipped, or there are no others.
    """
    if not bad:
        return
    lines = "".join(f"\n  - {line}" for line in [*bad[:10], *(["..."] if len(bad) > 10 else [])])
    report = f"{len(bad)} of {total} images cannot be used:{lines}"
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
        examples = "".join(
            f"\n  - {size[0]} x {size[1]}: {len(found)} images, as "
            f"{records.origin(int(records.rows[found[0]]))}"
            for size, found in list(sizes.items())[:5]
        )
        raise ValueError(
            f"the images have {len(sizes)} sizes (height x width):{examples}\n"
            "Set image_size to scale and crop them to one"
        )
    channels = max(len(image) for image in images)
    stacked = np.empty((len(images), channels, *images[0].shape[1:]), np.uint8)
    for target, image in zip(stacked, images, strict=True):
        target[:] = image
    return stacked
