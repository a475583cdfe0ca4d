"""What of a data set decides how it is learnt: shapes, spacings and intensities (nnU-Net).

Isensee, Jaeger, Kohl, Petersen, Maier-Hein, "nnU-Net: a self-configuring method for deep
learning-based biomedical image segmentation", Nature Methods 18 (2021), "data fingerprint".

Departures:
    - each case stands with the same number of foreground values, as there; but with the quantiles
      of its own values, where nnU-Net draws with replacement: the same distribution without chance.
    - each with at most 10,000 of them; nnU-Net shares 100 million out to all cases.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raykb.engine.arguments import refuse
from raykb.segmentation.documents import Document

Box = tuple[slice, slice, slice]
Case = tuple[np.ndarray, np.ndarray, Sequence[float]]
"""An image (C, Z, Y, X), its label (Z, Y, X), and mm between voxels along Z, Y and X."""

_VALUES = 10_000  # of each case


@dataclass(frozen=True)
class Intensities:
    """What values a channel has in the foreground of all cases."""

    percentile_00_5: float
    median: float
    percentile_99_5: float
    mean: float
    std: float


@dataclass(frozen=True)
class Fingerprint(Document):
    """A data set as :func:`raykb.segmentation.nnunet.plan` sees it; axes are Z, Y and X.

    Attributes:
        shapes: of each case, cropped to where some channel is not zero.
        spacings_mm: of each case.
        modalities: name of each channel, as ``CT``.
        intensities: of each channel.
        labels: their number, with the background.
        relative_size: median share of a case's voxels that the crop leaves.

    Raises:
        ValueError: there are no cases, or not one entry for each, or a number is not positive.
    """

    FORMAT: ClassVar[str] = "raykb.fingerprint"
    VERSION: ClassVar[int] = 1

    shapes: tuple[tuple[int, int, int], ...]
    spacings_mm: tuple[tuple[float, float, float], ...]
    modalities: tuple[str, ...]
    intensities: tuple[Intensities, ...]
    labels: int
    relative_size: float

    def __post_init__(self) -> None:
        problems = []
        if not self.shapes or len(self.shapes) != len(self.spacings_mm):
            problems.append(
                f"shapes, spacings_mm: {len(self.shapes)} and {len(self.spacings_mm)}, must be one "
                "for each case, of which there is at least one"
            )
        for name, rows in (("shapes", self.shapes), ("spacings_mm", self.spacings_mm)):
            if strange := [row for row in rows if not min(row) > 0]:
                problems.append(f"{name}: {strange[0]}, must be positive along each axis")
        if not self.modalities or len(self.modalities) != len(self.intensities):
            problems.append(
                f"modalities, intensities: {len(self.modalities)} and {len(self.intensities)}, "
                "must be one for each channel, of which there is at least one"
            )
        if self.labels < 2:
            problems.append(f"labels: {self.labels}, must be at least 2, with the background")
        if not 0 < self.relative_size <= 1:
            problems.append(f"relative_size: {self.relative_size}, must be above 0 and at most 1")
        refuse(problems)


def nonzero_box(image: np.ndarray) -> Box:
    """Return the smallest box outside of which all channels are zero.

    Args:
        image: (C, Z, Y, X); the whole of it, if there is nothing else than zeros.
    """
    inside = (image != 0).any(axis=0)  # (Z, Y, X)
    if not inside.any():
        inside = np.ones_like(inside)
    z, y, x = (np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return (slice(z[0], z[-1] + 1), slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))


def fingerprint(cases: Iterable[Case], *, modalities: Sequence[str], labels: int) -> Fingerprint:
    """Return the fingerprint of the cases to train on; one is looked at after another.

    Args:
        cases: image, label and spacing of each; voxels with a label above 0 are the foreground.
        modalities: name of each channel.
        labels: their number, with the background.

    Raises:
        ValueError: a case is of other axes, channels or labels, or has a value that is not finite;
            or no case has any foreground.
    """
    shapes, spacings, kept = [], [], []
    values: list[np.ndarray] = []  # (C, n) of each case
    for number, (image, label, spacing_mm) in enumerate(cases):
        _check(number, image, label, len(modalities), labels)
        z, y, x = nonzero_box(image)
        cropped, foreground = image[:, z, y, x], label[z, y, x] > 0
        shapes.append(foreground.shape)
        spacings.append((float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])))
        kept.append(foreground.size / label.size)
        if foreground.any():
            values.append(_spread(cropped[:, foreground]))
    if shapes and not values:
        raise ValueError(f"cases: none of {len(shapes)} has a label above 0; give labelled ones")
    of_channels = np.concatenate(values, axis=1) if values else np.empty((0, 0))
    return Fingerprint(
        shapes=tuple(shapes),
        spacings_mm=tuple(spacings),
        modalities=tuple(modalities),
        intensities=tuple(map(_intensities, of_channels)),
        labels=labels,
        relative_size=float(np.median(kept)) if kept else 1.0,
    )


def _check(number: int, image: np.ndarray, label: np.ndarray, channels: int, labels: int) -> None:
    problems = []
    if image.ndim != 4 or len(image) != channels or image.shape[1:] != label.shape:
        problems.append(
            f"image, label: {image.shape} and {label.shape}, must be ({channels}, Z, Y, X) and "
            "(Z, Y, X)"
        )
    if not np.isfinite(image).all():
        problems.append("image: has values that are not finite")
    if label.size and not 0 <= label.min() <= label.max() < labels:
        problems.append(f"label: {label.min()}..{label.max()}, must be in 0..{labels - 1}")
    refuse([f"case {number}, {problem}" for problem in problems])


def _spread(foreground: np.ndarray) -> np.ndarray:
    """Return (C, n) values that stand for all of a case's (C, V): its quantiles, evenly spread."""
    at = (np.arange(_VALUES) + 0.5) / _VALUES
    values = np.quantile(foreground.astype(np.float64), at, axis=1, method="inverted_cdf")
    return np.moveaxis(values, 0, 1)


def _intensities(values: np.ndarray) -> Intensities:
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5)).tolist()
    return Intensities(low, median, high, float(values.mean()), float(values.std()))
