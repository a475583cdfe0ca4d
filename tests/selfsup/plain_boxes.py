"""Matched boxes one image, one box and one try at a time, as the paper and its code say it."""

import math


def plain_boxes(crops, mirrored, size, draw, *, count=10, least=32, grid=True, overlap=0.5):
    """Return for each image the boxes in both views, or None where there is no intersection.

    ``draw(image, box, attempt)`` returns what gives whole numbers from a range, both ends
    included, and real ones, as ``random.randint`` and ``random.uniform``.
    """
    return [
        of_image(*pair, size, lambda *which, n=n: draw(n, *which), count, least, grid, overlap)
        for n, pair in enumerate(zip(crops, mirrored, strict=True))
    ]


def of_image(crops, mirrored, size, draw, count, least, grid, overlap):
    (y_1, x_1, h_1, w_1), (y_2, x_2, h_2, w_2) = crops
    left, right = max(x_1, x_2), min(x_1 + w_1, x_2 + w_2)
    top, bottom = max(y_1, y_2), min(y_1 + h_1, y_2 + h_2)
    if right <= left or bottom <= top:
        return None
    across, down = min(size / w_1, size / w_2), min(size / h_1, size / h_2)
    width = math.floor((right - left) * across + 1e-9)
    height = math.floor((bottom - top) * down + 1e-9)
    if width <= least or height <= least:
        return None
    boxes, first = [], []
    for number in range(count):
        for attempt in range(50):
            numbers = draw(number, attempt)
            by, bh = span(height, least, grid, *numbers)
            bx, bw = span(width, least, grid, *numbers)
            box = (bx, by, bx + bw, by + bh)
            if all(iou(box, other) <= overlap for other in first):
                break
        first.append(box)
        both = []
        for (y, x, h, w), flip in zip(crops, mirrored, strict=True):
            begin = bx * (size / w) / across + (left - x) * (size / w)
            end = begin + bw * (size / w) / across
            upper = by * (size / h) / down + (top - y) * (size / h)
            lower = upper + bh * (size / h) / down
            if flip:
                begin, end = size - end, size - begin
            both.append([min(max(v, 0.0), size) for v in (begin, upper, end, lower)])
        boxes.append(both)
    return boxes


def span(side, least, grid, whole, uniform):
    """Return where a box begins and how long it is, along one axis."""
    if not grid:
        own = whole(least, side - 1)
        return uniform(0, 1) * (side - own), own
    cells = whole(1, side // least)
    room = side / cells
    own = whole(least, math.floor(room))
    shift, cell = math.modf(uniform(0, cells))
    return cell * room + shift * (room - own), own


def iou(first, second):
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    if across <= 0 or down <= 0:
        return 0.0
    common = across * down
    one = (first[2] - first[0]) * (first[3] - first[1])
    other = (second[2] - second[0]) * (second[3] - second[1])
    return common / (one + other - common)
