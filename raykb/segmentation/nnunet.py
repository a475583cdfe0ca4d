"""nnU-Net's plan: from the fingerprint of a data set to how its networks are made and fed.

Isensee, Jaeger, Kohl, Petersen, Maier-Hein, "nnU-Net: a self-configuring method for deep
learning-based biomedical image segmentation", Nature Methods 18 (2021); the rules are those of
version 2 of its code. A plan knows of no task, but of what a fingerprint says.

    1. Spacing: the median along each axis. Where the coarsest one is above 3 times the others, and
       has less than 1/3 of their voxels: its 10th percentile, but no less than the others' spacing.
    2. The coarsest axis comes first.
    3. CT is clipped and scaled by the foreground of all cases; all else is standardised case by
       case, within what is not zero if the crop to it left less than 3/4 of the voxels.
    4. Patch: as much space along each axis, 256^3 (2048^2) voxels, no more than the median shape.
       Then strides and kernels (:func:`raykb.segmentation.topology.topology`).
    5. 32 channels, twice as many at each coarser stage, up to 320 (512).
    6. The patch shrinks until a batch of two takes no more than the reference; what is left makes
       the batch larger, up to 5 % of the voxels of all cases.
    7. A configuration of low resolution, where a patch has less than 1/4 of the median shape:
       spacing grows in steps of 1.03, at first along axes finer than half the coarsest one, until
       it has; if that halves the voxels. At full resolution Dice is then that of a whole batch.

Departures:
    - CT is known by the name of its channel; other names that nnU-Net knows (none, RGB) are not.
    - an axis of few voxels is not shortened to none, and a memory that has no room for any patch is
      refused, where nnU-Net does not end.
"""

from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np

from raykb.segmentation.fingerprint import Fingerprint
from raykb.segmentation.plans import Configuration, Name, Normalisation, Plan
from raykb.segmentation.topology import Topology, feature_map_size, smaller, topology, widths

_ANISOTROPIC = 3.0
_REFERENCE_GB = 8.0
_LEAST_BATCH = 2
_SHARE_OF_VOXELS = 0.05  # that a batch has of all cases
_SHARE_OF_MEDIAN = 0.25  # that a patch has of a case, or there is a configuration of low resolution
_COARSER = 1.03


class _Reference(NamedTuple):
    """What was measured to fit into 8 GB."""

    features: float  # numbers that all convolutions put out, for one patch of the batch
    batch: int
    most_channels: int
    edge: int  # of the first patch, were it a cube


_REFERENCES = {2: _Reference(85e6, 12, 512, 2048), 3: _Reference(560e6, 2, 320, 256)}


def plan(fingerprint: Fingerprint, memory_gb: float = 8.0) -> Plan:
    """Return the plan of a data set; it depends on nothing else than the arguments.

    Args:
        fingerprint: of the cases to train on.
        memory_gb: of the device.

    Raises:
        ValueError: the memory is too little for any patch.
    """
    spacing = target_spacing(fingerprint)
    first = int(np.argmax(spacing))
    order = [first, *(axis for axis in range(3) if axis != first)]
    shapes = np.array(fingerprint.shapes) * (np.array(fingerprint.spacings_mm) / spacing)
    spacing, median = spacing[order], np.median(_whole(shapes), axis=0)[order]
    context = _Context(fingerprint, memory_gb)
    return Plan(
        transpose=(order[0], order[1], order[2]),
        normalisation=_normalisation(fingerprint),
        labels=fingerprint.labels,
        configurations=(
            context.configuration("2d", spacing[1:], median[1:], median.prod(), batch_dice=True),
            *(_three_dimensional(context, spacing, median) if median[0] > 1 else ()),
        ),
    )


def target_spacing(fingerprint: Fingerprint) -> np.ndarray:
    """Return (3,) the mm between voxels, along Z, Y and X, that cases are resampled to (rule 1)."""
    spacings = np.array(fingerprint.spacings_mm, np.float64)  # (N, 3)
    target, size = np.median(spacings, axis=0), np.median(fingerprint.shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    widest, fewest = target[others].max(), size[others].min()
    if target[worst] > _ANISOTROPIC * widest and size[worst] * _ANISOTROPIC < fewest:
        finer = np.percentile(spacings[:, worst], 10)
        target[worst] = finer if finer >= widest else widest + 1e-5
    return target


def _normalisation(fingerprint: Fingerprint) -> tuple[Normalisation, ...]:
    nonzero = fingerprint.relative_size < 3 / 4
    return tuple(
        Normalisation("ct", False, intensities)
        if name.casefold() == "ct"
        else Normalisation("z_score", nonzero, None)
        for name, intensities in zip(fingerprint.modalities, fingerprint.intensities, strict=True)
    )


def _three_dimensional(
    context: "_Context", spacing: np.ndarray, median: np.ndarray
) -> list[Configuration]:
    """Return full and, by rule 7, low resolution."""
    full = context.configuration("3d_fullres", spacing, median, median.prod(), batch_dice=False)
    low, coarse, voxels = full, spacing.copy(), median.prod()
    while np.prod(low.patch_size) < _SHARE_OF_MEDIAN * voxels:
        fine = coarse.max() > 2 * coarse
        coarse[fine if fine.any() else slice(None)] *= _COARSER
        shape = spacing / coarse * median
        voxels = shape.prod()
        low = context.configuration("3d_lowres", coarse, _whole(shape), voxels, batch_dice=False)
    if low is full or median.prod() < 2 * voxels:
        return [full]
    return [replace(full, batch_dice=True), low]


class _Context(NamedTuple):
    """What all configurations of a plan are told."""

    fingerprint: Fingerprint
    memory_gb: float

    def configuration(
        self,
        name: Name,
        spacing: np.ndarray,
        median: np.ndarray,
        voxels: float,
        *,
        batch_dice: bool,
    ) -> Configuration:
        """Return a configuration by the rules 4 to 6; ``voxels`` are those of a case."""
        reference = _REFERENCES[len(spacing)]
        room = reference.features * self.memory_gb / _REFERENCE_GB
        found = topology(spacing.tolist(), _first_patch(spacing, median, reference.edge))
        while (features := self._features(found)) / reference.batch * _LEAST_BATCH > room:
            try:
                found = smaller(found, spacing.tolist(), median.tolist())
            except ValueError as error:
                raise ValueError(
                    f"memory_gb: {self.memory_gb}, must be more: {name} has no patch that fits"
                ) from error
        covered = _SHARE_OF_VOXELS * voxels * len(self.fingerprint.shapes)
        most = min(
            round(room / features * reference.batch), round(covered / prod(found.patch_size))
        )
        return Configuration(
            name=name,
            spacing_mm=tuple(spacing.tolist()),
            median_shape=tuple(median.tolist()),
            patch_size=found.patch_size,
            batch_size=max(most, _LEAST_BATCH),
            strides=found.strides,
            kernel_sizes=found.kernel_sizes,
            widths=_widths(found),
            batch_dice=batch_dice,
        )

    def _features(self, found: Topology) -> int:
        return feature_map_size(found, _widths(found), self.fingerprint.labels)


def _widths(found: Topology) -> tuple[int, ...]:
    most = _REFERENCES[len(found.patch_size)].most_channels
    return widths(len(found.strides), most)


def _whole(shape: np.ndarray) -> np.ndarray:
    """Return the nearest numbers of voxels, which are at least 1."""
    voxels: np.ndarray = np.maximum(np.round(shape), 1.0)
    return voxels


def _first_patch(spacing: np.ndarray, median: np.ndarray, edge: int) -> list[float]:
    """Return a patch of edge^d voxels as long along each axis in mm, up to the median shape."""
    lengths = np.round(spacing.prod() ** (1 / len(spacing)) / spacing * edge)
    first: list[float] = np.minimum(lengths, median).tolist()
    return first
