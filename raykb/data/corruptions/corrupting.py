"""Corrupted images by the batch: ImageNet-C's formulas, at its constants or at those of small ones.

Dan Hendrycks, Thomas Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, arXiv 1903.12261. With the constants of small images the formulas are
those that CIFAR-10-C was made with; the images that come of them are not CIFAR-10-C.

Departures: frost is made up (:mod:`raykb.data.corruptions.weather`), and water on the lens slopes a
little otherwise (:mod:`raykb.data.corruptions.spatter`). Motion is ImageMagick's, without rounding.
Elastic images are read at any position, where OpenCV's are 32nds of a pixel. For glass the source
means to exchange two pixels, and its numpy copies one over the other: so it is here.
"""

import difflib

import numpy as np
import torch
from torch import Tensor

from raykb.data.corruptions.draws import Draws
from raykb.data.corruptions.table import CORRUPTIONS, EXTRA, SEVERITIES, Corruption
from raykb.data.corruptions.values import to_bytes
from raykb.data.operations import rows_at_a_time

CONSTANTS = ("large", "small")
_SMALL = 64  # pixels a side, at most


def corrupted(
    images: Tensor,
    name: str,
    severity: int,
    *,
    ids: np.ndarray | Tensor,
    seed: int,
    constants: str | None = None,
) -> Tensor:
    """Return images corrupted, (N, C, H, W) uint8 on their device.

    What becomes of an image depends on (seed, name, severity, id) alone, not on the batch.

    Args:
        images: (N, C, H, W) uint8, one channel or three; left as they are.
        name: a row of :data:`CORRUPTIONS` or :data:`EXTRA`.
        severity: from 1 to 5.
        ids: (N,) integer sample ids.
        seed: of what is drawn.
        constants: ``large`` or ``small``; None is small for images of up to 64 pixels a side.

    Raises:
        ValueError: an unknown name, severity or set of constants, or images or ids of other shapes.
    """
    corruption = _found(name)
    _check(images, severity, ids, constants)
    size = constants or ("small" if max(images.shape[2:]) <= _SMALL else "large")
    row = getattr(corruption, size)[severity - 1]
    out, rows = torch.empty_like(images), max(1, rows_at_a_time(images) // 4)  # float32 is 4 bytes
    for first in range(0, len(images), rows):
        part = slice(first, first + rows)
        draws = Draws(
            seed=seed,
            stream=("corruption", name, severity),
            ids=ids[part],
            device=images.device,
        )
        out[part] = to_bytes(corruption.formula(images[part] / 255, draws, *row))
    return out


def _found(name: str) -> Corruption:
    known = {**CORRUPTIONS, **EXTRA}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = "".join(f" (did you mean {one!r}?)" for one in near)
    raise ValueError(f"name: {name!r} is no corruption{hint}; choose from {', '.join(known)}")


def _check(images: Tensor, severity: int, ids: np.ndarray | Tensor, constants: str | None) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images: {images.dtype} of shape {tuple(images.shape)}; must be uint8 of shape "
            "(N, 1, H, W) or (N, 3, H, W)"
        )
    if len(ids) != len(images):
        raise ValueError(f"ids: {len(ids)} for {len(images)} images; must be one for each")
    if severity not in SEVERITIES:
        raise ValueError(
            f"severity: {severity!r}, must be a whole number from 1 to 5; images that are not "
            "corrupted are those that there were"
        )
    if constants not in (None, *CONSTANTS):
        raise ValueError(f"constants: {constants!r}, must be 'large' or 'small', or null")
