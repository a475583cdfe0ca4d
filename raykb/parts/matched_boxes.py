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
50 tries it stays.

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
_LOTS = (2, 8, TRIES - 10)  # tries made at once: for most images the first are enough
_DRAWS = 6  # of a try: grid, length and place of the rows; the same of the columns

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
    start, length = crops.unflatten(2, (2, 2)).unbind(2)  # (N, 2, 2): views, (y, x)
    scale = size / length
    first = start.amax(1)  # (N, 2): of the intersection
    common = (start + length).amin(1) - first
    coarse = scale.amin(1)
    frame = (common * coarse + 1e-9).floor()  # whole pixels, which no box leaves
    valid = (frame > least).all(1) & (common > 0).all(1)
    sides = frame.clamp(min=least + 1).T.numpy()
    minus_first, last = torch.from_numpy(_drawn(sides, draw, count, least, grid, overlap))
    drawn = torch.stack([-minus_first, last], 3).permute(2, 1, 0, 3)  # (N, K, (y, x), …)
    factor = (scale / coarse[:, None])[:, :, None, :, None]  # (N, 2, 1, 2, 1)
    offset = ((first[:, None] - start) * scale)[:, :, None, :, None]
    boxes = drawn[:, None] * factor + offset  # (N, 2, K, (y, x), (first, last))
    rows, columns = boxes.unbind(3)  # (N, 2, K, (first, last)) each
    columns = torch.where(mirrored[:, :, None, None], size - columns.flip(3), columns)
    spans = torch.stack([columns, rows], 3)
    if jitter:
        numbers = torch.from_numpy(draw("jitter", np.arange(len(crops)), 4 * count))
        change = jitter * (2 * numbers.unflatten(1, (count, 2, 2)) - 1)
        spans[:, 1] = _jittered(spans[:, 1], change)
    boxes = spans.mT.flatten(3).clamp(0, size)  # left, top, right, bottom
    whole = torch.tensor([0.0, 0.0, size, size], dtype=boxes.dtype)
    return MatchedBoxes(torch.where(valid[:, None, None, None], boxes, whole).float(), valid)


def _drawn(
    frame: np.ndarray, draw: Draw, count: int, least: int, grid: bool, overlap: float
) -> np.ndarray:
    """Return boxes (2, 2, K, N) in frames (2, N): minus top and left, and bottom and right.

    So what two boxes have in common reaches to the minimum of each border. Images come last, for
    numpy is fast along long axes. Boxes are chosen one after another from few tries each, and of
    the images where these are not enough, from more.
    """
    rows = np.arange(frame.shape[1])
    pool, boxes = np.empty((2, 2, count, 0, len(rows))), np.empty((2, 2, count, len(rows)))
    for lot, tries in enumerate(_LOTS):
        numbers = draw(f"boxes {lot}", rows, count * tries * _DRAWS)
        numbers = np.ascontiguousarray(numbers.T).reshape(count, tries, 2, 3, len(rows))
        found = _sampled(frame[:, None, None, rows], numbers.transpose(3, 2, 0, 1, 4), least, grid)
        pool = np.concatenate([pool, found], 3)
        boxes[..., rows], done = _chosen(pool, overlap)
        rows, pool = rows[~done], pool[..., ~done]
        if not len(rows):
            break
    return boxes


def _chosen(pool: np.ndarray, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (2, 2, K, n), each the first of its tries that overlaps none before too much.

    It is the last one where there is no such try; whether all of an image have one is (n,). Two
    boxes of areas A and B overlap too much if C / (A + B - C) > o, or C > o / (1 + o) (A + B).

    Args:
        pool: (2, 2, K, tries, n).
        overlap: o.
    """
    *_, count, tries, images = pool.shape
    every, done = np.arange(images), np.ones(images, bool)
    shares = overlap / (1 + overlap) * pool.sum(0).prod(0)  # (K, tries, n)
    boxes, share = pool[:, :, :, 0].copy(), shares[:, 0].copy()
    for number in range(1, count):
        own, before = pool[:, :, number, :, None], boxes[:, :, None, :number]
        down, across = np.minimum(own, before).sum(0).clip(0)  # (tries, k, n) each
        most = shares[number][:, None] + share[:number]
        free = (down * across <= most).all(1)  # (tries, n)
        some = free.any(0)
        first = np.where(some, free.argmax(0), tries - 1)
        boxes[:, :, number] = pool[:, :, number, first, every]
        share[number] = shares[number, first, every]
        done &= some
    return boxes, done


def _sampled(frame: np.ndarray, numbers: np.ndarray, least: int, grid: bool) -> np.ndarray:
    """Return boxes (2, 2, K, tries, n): minus first, and last, row and column.

    Args:
        frame: (2, 1, 1, n) its height and its width.
        numbers: (3, 2, K, tries, n) uniform ones: of grid, length and place.
        least: shortest side.
        grid: whether boxes lie in the cells of a grid.
    """
    divided, length, place = numbers
    if grid:
        cells = 1 + np.floor(divided * np.floor(frame / least))
        cell = frame / cells
        own = least + np.floor(length * (np.floor(cell) - least + 1))
        shift, number = np.modf(place * cells)
        first = number * cell + shift * (cell - own)
    else:
        own = least + np.floor(length * (frame - least))
        first = place * (frame - own)
    return np.stack([-first, first + own])


def _jittered(spans: Tensor, change: Tensor) -> Tensor:
    """Return spans (..., 2), shifted and stretched by shares (..., 2) of their length."""
    first, length = spans[..., 0], spans[..., 1] - spans[..., 0]
    first = first + change[..., 0] * length
    return torch.stack([first, first + length * (1 + change[..., 1])], -1)
