"""Masks of known geometry."""

import numpy as np


def box(*ranges, size=24):
    """A box in a cube of that size: one (first, last + 1) for each axis."""
    mask = np.zeros((size,) * len(ranges), bool)
    mask[tuple(slice(*ends) for ends in ranges)] = True
    return mask


def cube(side, *corner):
    """A cube in 24³, with its lowest corner there."""
    return box(*((start, start + side) for start in corner))


def ball(radius, *centre, size=40):
    squares = sum(
        (axis - middle) ** 2
        for axis, middle in zip(np.ogrid[:size, :size, :size], centre, strict=True)
    )
    return squares <= radius**2
