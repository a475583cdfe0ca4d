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
_LOTS = (1, 7, TRIES - 8)  # tries that are made at once: most images are done after the first
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
    sides = frame.clamp(min=least + 1).numpy()
    drawn = torch.from_numpy(_drawn(sides, draw, count, least, grid, overlap))
    drawn = drawn.permute(1, 2, 0).unflatten(2, (2, 2))  # (N, K, (y, x), (first, last))
    factor = (scale / coarse[:, None])[:, :, None, :, None]  # (N, 2, 1, 2, 1)
    offset = ((first[:, None] - start) * scale)[:, :, None, :, None]
    boxes = drawn[:, None] * factor + offset  # (N, 2, K, (y, x), (first, last))
    rows, columns = boxes.unbind(3)
    columns = torch.where(mirrored[:, :, None, None], size - columns.flip(3), columns)
    if jitter:
        numbers = torch.from_numpy(draw("jitter", np.arange(len(crops)), 4 * count))
        numbers = numbers.unflatten(1, (count, 4))
        rows[:, 1] = _jittered(rows[:, 1], jitter * (2 * numbers[:, :, :2] - 1))
        columns[:, 1] = _jittered(columns[:, 1], jitter * (2 * numbers[:, :, 2:] - 1))
    boxes = torch.stack([columns, rows], 4).flatten(3)  # left, top, right, bottom
    whole = torch.tensor([0.0, 0.0, size, size], dtype=boxes.dtype)
    boxes = torch.where(valid[:, None, None, None], boxes, whole)
    return MatchedBoxes(boxes.clamp(0, size).float(), valid)


def _drawn(
    frame: np.ndarray, draw: Draw, count: int, least: int, grid: bool, overlap: float
) -> np.ndarray:
    """Return top, bottom, left and right of boxes in frames (N, 2), as (4, N, K).

    Every box is tried once; of images where one overlaps another, all are chosen one after another
    from more and more tries.
    """
    rows, pool = np.arange(len(frame)), np.empty((4, len(frame), count, 0))
    boxes = np.empty(pool.shape[:3])
    for lot, tries in enumerate(_LOTS):
        numbers = draw(f"boxes {lot}", rows, count * tries * _DRAWS)
        numbers = numbers.reshape(-1, count, tries, _DRAWS)
        pool = np.concatenate([pool, _sampled(frame[rows], numbers, least, grid)], 3)
        chosen, free = _chosen(pool, overlap)
        boxes[:, rows] = chosen
        rows, pool = rows[~free], pool[:, ~free]
        if not len(rows):
            break
    return boxes


def _chosen(pool: np.ndarray, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (4, n, K), each the first of its tries that overlaps none before too much.

    It is the last one where there is no such try; whether all of an image have one is (n,).
    """
    _, images, count, tries = pool.shape
    every, boxes = np.arange(images), pool[:, :, :, 0].copy()
    all_free = np.ones(images, bool)
    for number in range(1, count):
        most = _overlap(pool[:, :, number, :, None], boxes[:, :, None, :number]).max(2)
        free: np.ndarray = most <= overlap  # (n, tries)
        first, some = free.argmax(1), free.any(1)
        boxes[:, :, number] = pool[:, every, number, np.where(some, first, tries - 1)]
        all_free &= some
    return boxes, all_free


def _sampled(frame: np.ndarray, numbers: np.ndarray, least: int, grid: bool) -> np.ndarray:
    """Return boxes (4, n, K, tries) in frames (n, 2), of uniform numbers (n, K, tries, 6)."""
    borders = []
    for axis in (0, 1):
        side = frame[:, axis, None, None]
        divided, length, place = np.moveaxis(numbers[..., 3 * axis : 3 * axis + 3], -1, 0)
        if grid:
            cells = 1 + np.floor(divided * np.floor(side / least))
            cell = side / cells
            own = least + np.floor(length * (np.floor(cell) - least + 1))
            shift, number = np.modf(place * cells)
            first = number * cell + shift * (cell - own)
        else:
            own = least + np.floor(length * (side - least))
            first = place * (side - own)
        borders += [first, first + own]
    return np.stack(borders)


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes (4, ...) and (4, ...)."""
    down = np.minimum(first[1], second[1]) - np.maximum(first[0], second[0])
    across = np.minimum(first[3], second[3]) - np.maximum(first[2], second[2])
    common = np.maximum(down, 0) * np.maximum(across, 0)
    areas = [(box[1] - box[0]) * (box[3] - box[2]) for box in (first, second)]
    overlap: np.ndarray = common / (areas[0] + areas[1] - common)
    return overlap


def _jittered(spans: Tensor, change: Tensor) -> Tensor:
    """Return spans (N, K, 2), shifted and stretched by shares (N, K, 2) of their length."""
    first, length = spans[..., 0], spans[..., 1] - spans[..., 0]
    shift, stretch = change.unbind(2)
    first = first + shift * length
    return torch.stack([first, first + length * (1 + stretch)], 2)
