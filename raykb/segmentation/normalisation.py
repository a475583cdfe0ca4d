"""Intensities as a network takes them, channel by channel as a plan says (nnU-Net).

    ct         (clip(x, p_0.5, p_99.5) - mean) / std     all of these of the foreground of all cases
    z_score    (x - mean) / std                          of the case itself

Departures:
    - holes in what is not zero are not filled, where z_score looks at that alone.
"""

from collections.abc import Sequence

import numpy as np

from raykb.segmentation.fingerprint import Intensities
from raykb.segmentation.plans import Normalisation

_LEAST = 1e-8  # std


def normalise(image: np.ndarray, normalisation: Sequence[Normalisation]) -> np.ndarray:
    """Return an image (C, …) as float32, cropped to what is not zero before.

    Args:
        image: (C, …), of any type.
        normalisation: of each channel.

    Raises:
        ValueError: there is not one for each channel, or ``ct`` is without intensities.
    """
    if len(image) != len(normalisation):
        raise ValueError(
            f"image: has {len(image)} channels, the plan {len(normalisation)}; must be as many"
        )
    inside = (image != 0).any(axis=0)
    normalised = np.empty(image.shape, np.float32)
    for channel, how, out in zip(image, normalisation, normalised, strict=True):
        values = channel.astype(np.float64)
        if how.scheme == "ct":
            out[...] = _ct(values, how.intensities)
        else:
            out[...] = _z_score(values, inside if how.nonzero else np.ones_like(inside))
    return normalised


def _ct(values: np.ndarray, of: Intensities | None) -> np.ndarray:
    if of is None:
        raise ValueError("normalisation: ct has no intensities; must have those of the fingerprint")
    clipped: np.ndarray = values.clip(of.percentile_00_5, of.percentile_99_5)
    return (clipped - of.mean) / max(of.std, _LEAST)


def _z_score(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    scaled, inside = np.zeros_like(values), values[where]
    if inside.size:
        scaled[where] = (inside - inside.mean()) / max(inside.std(), _LEAST)
    return scaled
