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
    images_last = np.ascontiguousarray(crops.numpy().T)  # for numpy is fast along long axes
    start, length = images_last.reshape(2, 2, 2, len(crops))  # (2, 2, N) each: (y, x), views
    scale = size / length
    first, coarse = start.max(1), scale.min(1)  # (2, N)
    common = (start + length).min(1) - first
    frame = np.floor(common * coarse + 1e-9)  # whole pixels, which no box leaves
    valid = ((frame > least) & (common > 0)).all(0)
    rows = np.flatnonzero(valid)
    drawn = _drawn(frame[:, rows], rows, draw, count, least, grid, overlap)
    drawn[0] *= -1
    factor, offset = scale / coarse[:, None], (first[:, None] - start) * scale  # (2, 2, N)
    edges = drawn[:, :, None] * factor[..., rows].astype(np.float32)[:, :, None]
    edges += offset[..., rows].astype(np.float32)[:, :, None]  # (2, 2, 2, K, n)
    columns, turned = edges[:, 1], mirrored.numpy().T[:, None, rows]
    edges[:, 1] = np.where(turned, size - columns[::-1], columns)
    if jitter:
        numbers = draw("jitter", rows, 4 * count).T.reshape(2, 2, count, len(rows))
        edges[:, :, 1] = _jittered(edges[:, :, 1], jitter * (2 * numbers - 1))
    boxes = np.empty((len(crops), 2, count, 2, 2), np.float32)
    boxes[rows] = edges[:, ::-1].clip(0, size).transpose(4, 2, 3, 0, 1)
    boxes[~valid] = np.array([0, size])[:, None]
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
    """Return boxes (2, 2, K, n): minus top and left, and bottom and right.

    So what two boxes have in common reaches to the minimum of each border. The images whose tries
    are not enough are given more.

    Args:
        frame: (2, n) height and width, in which they lie.
        rows: (n,) which images these are.
        draw: gives uniform numbers by name and image.
        count: K.
        least: shortest side.
        grid: whether boxes lie in the cells of a grid.
        overlap: greatest IoU.
    """
    boxes, pool = (np.empty((2, 2, length, len(rows)), np.float32) for length in (count, 0))
    left = np.arange(len(rows))
    for lot, tries in enumerate(_LOTS):
        numbers = np.ascontiguousarray(draw(f"boxes {lot}", rows[left], 4 * count * tries).T)
        numbers = numbers.reshape(2, 2, count * tries, len(left))
        pool = np.concatenate([pool, _sampled(frame[:, None, left], numbers, least, grid)], 2)
        boxes[..., left], done = _chosen(pool, count, overlap)
        left, pool = left[~done], pool[..., ~done]
        if not len(left):
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
    free, at = np.ones((tries + 1, images), bool), np.full(images, -1)  # T stands for none of them
    chosen = np.empty((count, images), int)
    for number in range(count):
        later = slice(number, tries)  # as many tries before are gone
        at = np.minimum(number + free[number:].argmax(0), at + TRIES)
        place = chosen[number] = np.minimum(at, tries - 1) * images + every
        borders = np.minimum(pool[:, :, later], flat.take(place, 1).reshape(2, 2, 1, images))
        down, across = borders[0] + borders[1]  # (T - number, n) each
        free[later] &= down.clip(0) * across <= share[later] + share.take(place)
        free.reshape(-1)[place] = False
    return flat.take(chosen, 1).reshape(2, 2, count, images), at < tries


def _sampled(frame: np.ndarray, numbers: np.ndarray, least: int, grid: bool) -> np.ndarray:
    """Return tries (2, 2, T, n): minus first, and last, row and column.

    What a number leaves over when it has chosen a grid or a cell is as good as another one.

    Args:
        frame: (2, 1, n) its height and its width.
        numbers: (2, 2, T, n) uniform ones: of grid and length, and of cell and place.
        least: shortest side.
        grid: whether boxes lie in the cells of a grid.
    """
    length, place = numbers
    longest, shift = frame - 1, place
    if grid:
        length = length * np.floor(frame / least)
        cells = 1 + np.floor(length)
        length += 1 - cells
        longest = np.floor(frame / cells)
        shift = place * cells
        shift -= np.floor(shift)
    own = least + np.floor(length * (longest - least + 1))
    minus_first = shift * own - place * frame
    return np.stack([minus_first, own - minus_first], dtype=np.float32)


def _jittered(edges: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return edges (2, ...), first and last, moved and stretched by shares (2, ...) of a length."""
    (first, last), (shift, stretch) = edges, change
    length = last - first
    first = first + shift * length
    return np.stack([first, first + length * (1 + stretch)])
