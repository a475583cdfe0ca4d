"""The fifteen corruptions of ImageNet-C, the four beside them, and how strong each is.

Dan Hendrycks, Thomas Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, arXiv 1903.12261; constants are those of its official code, ``large`` for
images of about 224 pixels a side, and ``small`` for such of 32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raykb.data.corruptions import blur, digital, noise, spatter, weather

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One corruption.

    Attributes:
        kind: noise, blur, weather or digital.
        formula: (images, draws, *constants) -> images, float32 in and out.
        large: the formula's constants by severity, for large images.
        small: for small ones.
    """

    kind: str
    formula: Callable[..., Tensor]
    large: tuple[tuple[Any, ...], ...]
    small: tuple[tuple[Any, ...], ...]


def _alone(*values: float) -> tuple[tuple[float], ...]:
    return tuple((value,) for value in values)


def _elastic(side: int, *shares: tuple[float, float, float]) -> tuple[tuple[float, ...], ...]:
    """Return what is in pixels of what is said in sides of an image."""
    return tuple(tuple(side * share for share in row) for row in shares)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        "noise",
        noise.gaussian_noise,
        large=_alone(0.08, 0.12, 0.18, 0.26, 0.38),
        small=_alone(0.04, 0.06, 0.08, 0.09, 0.10),
    ),
    "shot_noise": Corruption(
        "noise",
        noise.shot_noise,
        large=_alone(60, 25, 12, 5, 3),
        small=_alone(500, 250, 100, 75, 50),
    ),
    "impulse_noise": Corruption(
        "noise",
        noise.impulse_noise,
        large=_alone(0.03, 0.06, 0.09, 0.17, 0.27),
        small=_alone(0.01, 0.02, 0.03, 0.05, 0.07),
    ),
    "defocus_blur": Corruption(
        "blur",
        blur.defocus_blur,
        large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": Corruption(
        "blur",
        blur.glass_blur,
        large=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        small=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": Corruption(
        "blur",
        blur.motion_blur,
        large=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        small=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": Corruption(
        "blur",
        blur.zoom_blur,
        large=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        small=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": Corruption(
        "weather",
        weather.snow,
        large=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        small=(
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Corruption(
        "weather",
        weather.frost,
        large=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        small=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": Corruption(
        "weather",
        weather.fog,
        large=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        small=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Corruption(
        "weather",
        digital.brightness,
        large=_alone(0.1, 0.2, 0.3, 0.4, 0.5),
        small=_alone(0.05, 0.1, 0.15, 0.2, 0.3),
    ),
    "contrast": Corruption(
        "digital",
        digital.contrast,
        large=_alone(0.4, 0.3, 0.2, 0.1, 0.05),
        small=_alone(0.75, 0.5, 0.4, 0.3, 0.15),
    ),
    "elastic_transform": Corruption(
        "digital",
        digital.elastic_transform,
        large=_elastic(
            244,
            (2, 0.7, 0.1),
            (2, 0.08, 0.2),
            (0.05, 0.01, 0.02),
            (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        ),
        small=_elastic(
            32,
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    ),
    "pixelate": Corruption(
        "digital",
        digital.pixelate,
        large=_alone(0.6, 0.5, 0.4, 0.3, 0.25),
        small=_alone(0.95, 0.9, 0.85, 0.75, 0.65),
    ),
    "jpeg_compression": Corruption(
        "digital",
        digital.jpeg_compression,
        large=_alone(25, 18, 15, 10, 7),
        small=_alone(80, 65, 58, 50, 40),
    ),
}

EXTRA: dict[str, Corruption] = {
    "speckle_noise": Corruption(
        "noise",
        noise.speckle_noise,
        large=_alone(0.15, 0.2, 0.35, 0.45, 0.6),
        small=_alone(0.06, 0.1, 0.12, 0.16, 0.2),
    ),
    "gaussian_blur": Corruption(
        "blur",
        blur.gaussian_blur,
        large=_alone(1, 2, 3, 4, 6),
        small=_alone(0.4, 0.6, 0.7, 0.8, 1),
    ),
    "spatter": Corruption(
        "weather",
        spatter.spatter,
        large=(
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
        small=(
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
    ),
    "saturate": Corruption(
        "digital",
        digital.saturate,
        large=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        small=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    ),
}
