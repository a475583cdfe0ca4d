"""Boxes that show the same region of an image in two of its views.

Roh, Shin, Kim, Kim, "Spatially Consistent Representation Learning", CVPR 2021, arXiv:2103.06122,
section 3.2, with the sampling of its official code (kakaobrain/scrl):

    image    crop 1  [x_1, x_1 + w_1]       view v shows its crop with S pixels,
             crop 2  [x_2, x_2 + w_2]       s_v = S / w_v of them for each pixel of the image
    frame    their intersection [x, x + w], with min(s_1, s_2) pixels for each: W of them
    box      b of these wide, at a of them;  in view v:
             left_v = a s_v / min(s_1, s_2) + (x - x_v) s_v,   right_v = left_v + b s_v / min(...)

and so for rows. A mirrored view has S - right and S - left for left and right, both at once.

A box is drawn in the frame: on a *grid* of 1..W/m columns (as many rows, by themselves) a cell, in
this a whole number of pixels from m to the cell's, and a place; or *plainly* a whole number from m
to W - 1, and a place. It is drawn again while its overlap (IoU) with one before is too large; after
50 tries it stays. The tries of an image are one sequence, whichever box they are for.

Departures: W is rounded down (official code: to the nearest, so that a box may leave a view by half
a pixel, and is cut off there and not in the other); places are real numbers (official code: whole
ones, by Python's generator); the overlap is measured in the frame, where it is that of view 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TRIES = 50
_LOTS = (2, 4, TRIES - 6)  # for each box, made at once: for most images the first are enough

Draw = Callable[[str, np.ndarray, int], np.ndarray]
"""``draw(name, rows, count)`` returns ``count`` uniform numbers for each of rows (n,), float64."""


class MatchedBoxes(NamedTuple):
    """Where regions lie in two views."""

    boxes: Tensor  # (N, 2, K, 4) float32: left, top, right, bottom in pixels
    valid: Tensor  # (N,) bool, False where the views have too little in common: no region


def matched_boxes(
    crops: Tensor,
    mirrored: Tensor,
    size: int,
    draw: Draw,
    *,
    count: int = 10,
    least: int = 32,
    grid: bool = True,
    overlap: float = 0.5,
    jitter: float = 0.0,
) -> MatchedBoxes:
    """Return boxes of the same regions in two views of each image.

    Args:
        crops: (N, 2, 4) float64 on the CPU: top, left, height and width of each view's crop, in
            pixels of the image.
        mirrored: (N, 2) bool, whether a view is mirrored left to right.
        size: side S of the views in pixels.
        draw: gives uniform numbers in [0, 1) by name and image.
        count: K, boxes of each image.
        least: m, shortest side of a box in pixels of the coarser view.
        grid: whether boxes are drawn in the cells of a grid; else plainly.
        overlap: greatest IoU of two boxes of an image, if it can be kept.
        jitter: what the boxes of view 2 are shifted by at most, as a share of their sides, and
            their sides changed by.

    Raises:
        ValueError: no box fits into a view.
    """
    if least >= size:
        raise ValueError(
            f"least: {least} pixels of a box's side, in views of {size}; must be less; one cell of "
            "the network's maps is usual"
        )
    start, length = crops.numpy().T.reshape(2, 2, 2, len(crops))  # (2, 2, N) each: (y, x), views
    scale = size / length
    first, coarse = start.max(1), scale.min(1)  # (2, N)
    common = (start + length).min(1) - first
    frame = np.floor(common * coarse + 1e-9)  # whole pixels, which no box leaves
    valid = ((frame > least) & (common > 0)).all(0)
    drawn = _drawn(frame, np.flatnonzero(valid), draw, count, least, grid, overlap)
    drawn[0] *= -1
    factor, offset = scale / coarse[:, None], (first[:, None] - start) * scale  # (2, 2, N)
    edges = drawn[:, :, None] * factor.astype(np.float32)[:, :, None]
    edges += offset.astype(np.float32)[:, :, None]  # (2, 2, 2, K, N): which, (y, x), views
    columns = edges[:, 1]
    np.copyto(columns, size - columns[::-1], where=mirrored.numpy().T[:, None])
    if jitter:
        numbers = draw("jitter", np.arange(len(crops)), 4 * count).T
        numbers = numbers.reshape(2, 2, count, len(crops))
        edges[:, :, 1] = _jittered(edges[:, :, 1], jitter * (2 * numbers - 1))
    edges[..., ~valid] = np.array([0, size])[:, None, None, None, None]
    boxes = edges[:, ::-1].clip(0, size).transpose(4, 2, 3, 0, 1).copy()
    return MatchedBoxes(torch.from_numpy(boxes).flatten(3), torch.from_numpy(valid))


def _drawn(
    frame: np.ndarray,
    rows: np.ndarray,
    draw: Draw,
    count: int,
    least: int,
    grid: bool,
    overlap: float,
) -> np.ndarray:
    """Return boxes (2, 2, K, N) in frames (2, N): minus top and left, and bottom and right.

    So what two boxes have in common reaches to the minimum of each border. Images come last, for
    numpy is fast along long axes. The images whose tries are not enough are given more.

    Args:
        frame: height and width.
        rows: (n,) images that have boxes; those of the others are zeros.
        draw: gives uniform numbers by name and image.
        count: K.
        least: shortest side.
        grid: whether boxes lie in the cells of a grid.
        overlap: greatest IoU.
    """
    boxes = np.zeros((2, 2, count, frame.shape[1]), np.float32)
    pool = np.empty((2, 2, 0, len(rows)), np.float32)
    kinds = 3 if grid else 2
    for lot, tries in enumerate(_LOTS):
        numbers = draw(f"boxes {lot}", rows, kinds * 2 * count * tries).T
        uniforms = np.ascontiguousarray(numbers).reshape(kinds, 2, count * tries, len(rows))
        pool = np.concatenate([pool, _sampled(frame[:, None, rows], uniforms, least)], 2)
        boxes[..., rows], done = _chosen(pool, count, overlap)
        rows, pool = rows[~done], pool[..., ~done]
        if not len(rows):
            break
    return boxes


def _chosen(pool: np.ndarray, count: int, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (2, 2, K, n) of tries (2, 2, T, n), and which images have all of them, (n,).

    A box is the first try after the box before that overlaps none too much, or else the fiftieth.
    Two boxes of areas A and B overlap too much if C / (A + B - C) > o, or C > o / (1 + o) (A + B).
    """
    tries, images = pool.shape[2:]
    flat, every = pool.reshape(4, -1), np.arange(images)
    share = overlap / (1 + overlap) * pool.sum(0).prod(0)  # (T, n)
    free, at = np.ones(share.shape, bool), np.full(images, -1)
    chosen = np.empty((count, images), int)
    for number in range(count):
        later = slice(number, None)  # as many tries before are gone
        first = number + free[later].argmax(0)
        at += TRIES
        np.copyto(at, first, where=(first < at) & free.take(first * images + every))
        place = chosen[number] = np.minimum(at, tries - 1) * images + every
        borders = np.minimum(pool[:, :, later], flat.take(place, 1).reshape(2, 2, 1, images))
        down, across = (borders[0] + borders[1]).clip(0)  # (T - number, n) each
        free[later] &= down * across <= share[later] + share.take(place)
        free.reshape(-1)[place] = False
    return flat.take(chosen, 1).reshape(2, 2, count, images), at < tries


def _sampled(frame: np.ndarray, numbers: np.ndarray, least: int) -> np.ndarray:
    """Return tries (2, 2, T, n): first and last pixel, of row and column.

    Args:
        frame: (2, 1, n) its height and its width.
        numbers: (2 or 3, 2, T, n) uniform ones: of length, place and, with a grid, of grid.
        least: shortest side.
    """
    length, place, *divided = numbers
    cells = 1 + np.floor(divided[0] * np.floor(frame / least)) if divided else 1
    longest = np.floor(frame / cells) if divided else frame - 1
    own = least + np.floor(length * (longest - least + 1))
    shift = place * cells
    shift -= np.floor(shift)  # within the cell
    first = place * frame - shift * own
    return np.stack([-first, first + own], dtype=np.float32)


def _jittered(edges: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return edges (2, ...), first and last, moved and stretched by shares (2, ...) of a length."""
    (first, last), (shift, stretch) = edges, change
    length = last - first
    first = first + shift * length
    return np.stack([first, first + length * (1 + stretch)])
