"""How far the surfaces of segmentations agree: the normalised surface Dice (NSD).

    NSD = (sum of a_i, i in S_A, d(i, S_B) <= tau  +  sum of a_j, j in S_B, d(j, S_A) <= tau)
          / (sum of a_i, i in S_A  +  sum of a_j, j in S_B)

    S_A, S_B  surface elements of prediction and reference
    a         area of an element
    d         distance to the nearest element of the other surface, mm
    tau       tolerance, mm

Two definitions of what an element is, whose figures differ:

    subvoxel  the corners between voxels that a surface passes, each with the area that it has
              there by a table of marching cubes, which is MONAI's. The Medical Segmentation
              Decathlon's (Antonelli et al., Nature Communications 2022), after Nikolov et al.,
              arXiv 1809.04430.
    edge      the voxels of a mask that touch its outside with a face, each with weight 1.

MONAI is in the extra ``medical``, and is imported on use: that takes seconds.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

from raykb.metrics.overlap import Array, Mask, by_label, masks

Definition = Literal["subvoxel", "edge"]

_ROUNDING = 1e-9  # relative: 3 steps of 0.1 mm are 0.30000000000000004


class Surface(NamedTuple):
    """Which places have an element of a surface, and with what area."""

    elements: Mask
    areas: npt.NDArray[np.float64]

    @property
    def area(self) -> float:
        """Of all elements."""
        return float(self.areas[self.elements].sum())


def surface_dice(
    prediction: Array,
    reference: Array,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    definition: Definition = "subvoxel",
) -> float:
    """Return the normalised surface Dice of two masks, in 0..1.

    NaN if both are empty, 0 if one is. What lies beyond the array counts as outside of the mask. A
    distance that exceeds the tolerance by no more than rounding is within it.

    Args:
        prediction: booleans of NumPy or PyTorch; ``subvoxel`` wants 2 or 3 axes, ``edge`` any.
        reference: as many.
        spacing_mm: distance of neighbours along each axis.
        tolerance_mm: tau, at least 0.
        definition: of a surface element.

    Raises:
        ValueError: an argument is not as said here.
        ImportError: ``subvoxel`` without MONAI.
    """
    predicted, expected = masks(prediction, reference)
    _check(predicted.ndim, spacing_mm, tolerance_mm, definition)
    if not (predicted.any() and expected.any()):
        return 0.0 if predicted.any() or expected.any() else float("nan")
    (box,) = find_objects((predicted | expected).view(np.uint8))
    ours, theirs = _DEFINITIONS[definition](predicted[box], expected[box], spacing_mm)
    near = _near(ours, theirs, spacing_mm, tolerance_mm)
    near += _near(theirs, ours, spacing_mm, tolerance_mm)
    return near / (ours.area + theirs.area)


def surface_dice_by_label(
    prediction: Array,
    reference: Array,
    labels: Sequence[str],
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    definition: Definition = "subvoxel",
) -> dict[str, float]:
    """Return the surface Dice of each label of one case; see :func:`by_label`."""

    def score(predicted: Mask, expected: Mask) -> float:
        return surface_dice(predicted, expected, spacing_mm, tolerance_mm, definition)

    return by_label(score, prediction, reference, labels)


def _check(axes: int, spacing_mm: Sequence[float], tolerance_mm: float, definition: str) -> None:
    """Raise ValueError, which tells all that is wrong."""
    problems = []
    if definition not in _DEFINITIONS:
        problems.append(f"definition={definition!r}: must be one of {', '.join(_DEFINITIONS)}")
    if definition == "subvoxel" and axes not in (2, 3):
        problems.append(f"prediction: {axes} axes, must have 2 or 3; 'edge' takes any number")
    if len(spacing_mm) != axes or not all(0.0 < step < math.inf for step in spacing_mm):
        problems.append(f"spacing_mm={tuple(spacing_mm)}: must be {axes} lengths above 0")
    if not 0.0 <= tolerance_mm < math.inf:
        problems.append(f"tolerance_mm={tolerance_mm}: must be at least 0")
    if problems:
        raise ValueError("; ".join(problems))


def _edge(predicted: Mask, expected: Mask, spacing_mm: Sequence[float]) -> tuple[Surface, Surface]:
    """Return the border voxels of both masks, each with weight 1."""
    borders = (mask & ~binary_erosion(mask) for mask in (predicted, expected))
    ours, theirs = (Surface(border, np.ones(border.shape)) for border in borders)
    return ours, theirs


def _subvoxel(
    predicted: Mask, expected: Mask, spacing_mm: Sequence[float]
) -> tuple[Surface, Surface]:
    """Return the corners that the surfaces of both masks pass, with areas in mm² (or mm in 2-D)."""
    try:
        monai = importlib.import_module("monai.metrics.utils")
    except ImportError as error:
        raise ImportError(
            "definition='subvoxel': areas are MONAI's, which is not installed; "
            "run: pip install 'raykb[medical]', or take definition='edge', which is another metric"
        ) from error
    steps = [float(step) for step in spacing_mm]
    ours, theirs, our_areas, their_areas = monai.get_mask_edges(predicted, expected, spacing=steps)
    return Surface(ours, our_areas.astype(float)), Surface(theirs, their_areas.astype(float))


def _near(own: Surface, other: Surface, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Return the area of the elements that are within tolerance of the other surface."""
    distances_mm = distance_transform_edt(~other.elements, sampling=spacing_mm)
    within = distances_mm <= tolerance_mm * (1.0 + _ROUNDING)
    return float(own.areas[own.elements & within].sum())


_DEFINITIONS: dict[str, Callable[[Mask, Mask, Sequence[float]], tuple[Surface, Surface]]] = {
    "subvoxel": _subvoxel,
    "edge": _edge,
}
