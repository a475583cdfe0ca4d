"""What every data set can be asked for: some of its rows, in some form."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raykb.data.records import Records, bullets
from raykb.data.splits import stratified_subset


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
            raise ValueError(f"the data set was asked for with:{bullets(problems)}")

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
