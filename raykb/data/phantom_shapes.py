"""Balls, shells and tubes in space, and chance in the measures of a volume.

Everything lies in millimetres (z, y, x) about the middle of a volume.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

Point = tuple[float, float, float]
Grid = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Millimetres along z, y and x, as (Z, 1, 1), (1, Y, 1) and (1, 1, X)."""


class Shape(Protocol):
    """A body in space."""

    def inside(self, grid: Grid) -> np.ndarray:
        """Return which points are in it, (Z, Y, X) bool."""


class Ball(NamedTuple):
    """A ball, or an ellipsoid along the axes; its volume is 4/3 pi times its radii."""

    centre_mm: Point
    radii_mm: Point

    def inside(self, grid: Grid) -> np.ndarray:
        """Return which points are in it."""
        within: np.ndarray = self.squared(grid) <= 1
        return within

    def squared(self, grid: Grid) -> np.ndarray:
        """Return the squared distance to the centre, in radii, (Z, Y, X)."""
        parts = zip(grid, self.centre_mm, self.radii_mm, strict=True)
        z, y, x = (((at - middle) / radius) ** 2 for at, middle, radius in parts)
        squared: np.ndarray = z + y + x
        return squared


class Shell(NamedTuple):
    """What a ball has outside of a smaller one of ``hollow`` times its radii."""

    centre_mm: Point
    radii_mm: Point
    hollow: float

    def inside(self, grid: Grid) -> np.ndarray:
        """Return which points are in it."""
        squared = Ball(self.centre_mm, self.radii_mm).squared(grid)
        return (squared <= 1) & (squared > self.hollow**2)


class Tube(NamedTuple):
    """All that is near a straight line from one point to another; its ends are half balls."""

    start_mm: Point
    end_mm: Point
    radius_mm: float

    def inside(self, grid: Grid) -> np.ndarray:
        """Return which points are in it."""
        along = np.subtract(self.end_mm, self.start_mm)
        ways = [at - first for at, first in zip(grid, self.start_mm, strict=True)]
        share = sum(way * a for way, a in zip(ways, along, strict=True)) / (along @ along)
        share = np.clip(share, 0, 1)
        squared = sum((way - share * a) ** 2 for way, a in zip(ways, along, strict=True))
        near: np.ndarray = squared <= self.radius_mm**2
        return near


@dataclass(frozen=True)
class Draw:
    """Chance, in the measures of one volume.

    Attributes:
        generator: of the case.
        half_mm: from the middle of the volume to its borders, (3,).
        spacing_mm: (3,).
    """

    generator: np.random.Generator
    half_mm: np.ndarray
    spacing_mm: np.ndarray

    @property
    def pixel_mm(self) -> float:
        """The finest spacing."""
        return float(self.spacing_mm.min())

    def number(self, low: float, high: float) -> float:
        """Return a uniform number."""
        return float(self.generator.uniform(low, high))

    def point(self, spread: float, about: Point = (0, 0, 0)) -> Point:
        """Return a voxel's place near another, ``spread`` of the way to the borders at most."""
        wanted = about + self.generator.uniform(-spread, spread, 3) * self.half_mm
        return point_of(np.rint(wanted / self.spacing_mm) * self.spacing_mm)

    def wide(self, low: float, high: float) -> Point:
        """Return radii which are a share of the way to the borders along each axis."""
        return point_of(self.generator.uniform(low, high, 3) * self.half_mm)

    def length(self, low: float, high: float) -> float:
        """Return a share of the way to the nearest border, of one and a half pixels at least."""
        return max(self.number(low, high) * float(self.half_mm.min()), 1.5 * self.pixel_mm)

    def small(self, low: float, high: float) -> Point:
        """Return the radii of a round ball of such a length."""
        radius = self.length(low, high)
        return radius, radius, radius

    def body(self) -> Ball:
        """Return what all else is in."""
        return Ball((0, 0, 0), self.wide(0.85, 0.95))


def point_of(at: np.ndarray) -> Point:
    """Return z, y and x of an array of three."""
    z, y, x = at.tolist()
    return z, y, x
