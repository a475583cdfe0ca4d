"""A labelled set of images as plain arrays, ready for an object store."""

from dataclasses import dataclass

import numpy as np

from raykb.data.source import Read


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N labelled images of one size; :class:`raykb.data.source.Examples` of ``images``, ``labels``.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64 in [0, len(classes)).
        ids: (N,) int64, each once: what names a sample wherever it travels.
        classes: names of the classes, in the order of the labels.
        skipped: one line for each image that could not be read and was left out.

    Raises:
        ValueError: the arrays contradict each other; every contradiction is named.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("this is no set of labelled images:\n  - " + "\n  - ".join(problems))

    def _problems(self) -> list[str]:
        problems = []
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            problems.append(
                f"images: {self.images.dtype} of shape {self.images.shape}, "
                "must be uint8 of shape (N, C, H, W)"
            )
        for name in ("labels", "ids"):
            column = getattr(self, name)
            if column.dtype != np.int64 or column.shape != self.images.shape[:1]:
                problems.append(
                    f"{name}: {column.dtype} of shape {column.shape}, must be int64 "
                    f"of shape {self.images.shape[:1]}, one for each image"
                )
        if problems:
            return problems
        if not len(self):
            return ["images: none, there must be at least one"]
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            problems.append(
                f"labels: from {low} to {high}, must lie in 0..{len(self.classes) - 1} "
                f"as there are {len(self.classes)} classes"
            )
        values, counts = np.unique(self.ids, return_counts=True)
        if counts.max() > 1:
            problems.append(f"ids: {values[counts > 1][:5].tolist()} occur more than once")
        return problems

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: np.ndarray) -> Read:
        """Return ``images`` (n, C, H, W) and ``labels`` (n,) of ``rows``, copied."""
        arrays = {"images": self.images[rows], "labels": self.labels[rows]}
        return Read(arrays, self.ids[rows], [""] * len(rows))

    def subset(self, rows: np.ndarray) -> "ImageSet":
        """Return the images at ``rows`` (positions, not ids), copied, in that order."""
        return ImageSet(self.images[rows], self.labels[rows], self.ids[rows], self.classes)
