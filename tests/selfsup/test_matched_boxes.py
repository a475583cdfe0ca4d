"""The geometry of boxes that show the same region in two views."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from plain_boxes import iou, plain_boxes

from raykb.data.views import crop_boxes
from raykb.engine.seeding import keyed_uniform, stream_seed
from raykb.selfsup.scrl import matched_boxes

HEIGHT, WIDTH, SIZE = 300, 400, 224
LOTS = (2, 4, 44)  # tries for each box that are drawn at once


def views(count, seed=0, scale=(0.2, 1.0)):
    """Return crops (N, 2, 4) and whether they are mirrored (N, 2)."""
    crops, mirrored = [], []
    for view in (0, 1):
        uniforms = keyed_uniform(stream_seed(seed, "view", view), np.arange(count), 5)
        crops.append(crop_boxes(uniforms[:, :4], HEIGHT, WIDTH, scale, (3 / 4, 4 / 3)))
        mirrored.append(uniforms[:, 4] < 0.5)
    return torch.stack(crops, 1), torch.stack(mirrored, 1)


def draw(name, rows, count):
    return keyed_uniform(stream_seed(7, name), rows, count).numpy()


def in_image(boxes, crops, mirrored):
    """Return boxes (N, 2, K, 4) in pixels of the image."""
    top, left, height, width = (part[:, :, None] for part in crops.unbind(2))
    begin, upper, end, lower = boxes.double().unbind(3)
    flip = mirrored[:, :, None]
    begin, end = torch.where(flip, SIZE - end, begin), torch.where(flip, SIZE - begin, end)
    x, y = (
        [start + edge * length / SIZE for edge in edges]
        for start, length, edges in ((left, width, (begin, end)), (top, height, (upper, lower)))
    )
    return torch.stack([x[0], y[0], x[1], y[1]], 3)


@pytest.mark.parametrize("grid", [True, False])
def test_both_boxes_of_ten_thousand_pairs_are_the_same_region_of_the_image(grid):
    crops, mirrored = views(10_000)
    boxes, valid = matched_boxes(crops, mirrored, SIZE, draw, count=2, grid=grid)
    assert 0.9 < valid.float().mean() < 1.0
    there = in_image(boxes, crops, mirrored)[valid]
    assert (there[:, 0] - there[:, 1]).abs().max() < 1e-3
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("grid", [True, False])
def test_boxes_lie_in_their_views_and_are_not_short_in_the_coarser_one(grid):
    crops, mirrored = views(500)
    boxes, valid = matched_boxes(crops, mirrored, SIZE, draw, grid=grid, least=40)
    assert boxes.shape == (500, 2, 10, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= SIZE
    sides = boxes[valid][..., 2:] - boxes[valid][..., :2]  # (M, 2, K, 2)
    assert (sides.amin(1) > 40 - 1e-3).all()
    assert sides.amax() > 150


def tries(image, count):
    """Return the uniform numbers of all tries of an image, (50 K, 4).

    They are of grid and length, and of cell and place, of rows, and the same of columns.
    """
    lots = [
        draw(f"boxes {lot}", np.array([image]), 4 * count * each).reshape(2, 2, -1)
        for lot, each in enumerate(LOTS)
    ]
    return np.concatenate(lots, 2).transpose(2, 1, 0).reshape(50 * count, 4)


def dice(numbers):
    """Return what gives whole and real numbers, of uniform ones in their order.

    A whole one after another is made of what that left over.
    """
    left, over = iter(numbers), []

    def whole(low, high):
        rest, steps = math.modf((over.pop() if over else next(left)) * (high - low + 1))
        over.append(rest)
        return low + int(steps)

    def uniform(low, high):
        over.clear()
        return low + next(left) * (high - low)

    return whole, uniform


@pytest.mark.parametrize("options", [{}, {"grid": False}, {"least": 60}, {"overlap": 0.1}])
def test_they_are_those_that_a_plain_loop_draws(options):
    given = {"count": 6, "least": 32, "grid": True} | options
    crops, mirrored = views(40, seed=1)
    begin = SIZE - given["least"] - 8
    narrow = torch.tensor([[0, 0, SIZE, SIZE], [begin, begin, SIZE, SIZE]]).double()
    crops[-1] = narrow  # boxes have room for a few pixels' shift
    left = [iter(tries(image, given["count"])) for image in range(40)]
    used = Counter()

    def one(image, _box, _attempt):
        used[image] += 1
        return dice(next(left[image]).tolist())

    found, valid = matched_boxes(crops, mirrored, SIZE, draw, **given)
    wanted = plain_boxes(crops.tolist(), mirrored.tolist(), SIZE, one, **given)
    assert [boxes is not None for boxes in wanted] == valid.tolist()
    for boxes, plain in zip(found, wanted, strict=True):
        if plain is None:
            assert (boxes == torch.tensor([0.0, 0.0, SIZE, SIZE])).all()
        else:
            torch.testing.assert_close(
                boxes, torch.tensor(plain).transpose(0, 1), atol=1e-3, rtol=0
            )
    assert used[39] > 5 * 50 / 2  # a box got its last try


def test_boxes_of_an_image_overlap_little_where_there_is_room():
    crops, mirrored = views(200, scale=(0.8, 1.0))
    boxes, valid = matched_boxes(crops, mirrored, SIZE, draw, count=5)
    assert valid.all()
    for own in boxes[:, 0].tolist():
        for number, box in enumerate(own):
            assert all(iou(box, other) <= 0.5 + 1e-4 for other in own[:number])


def test_where_there_is_no_room_the_last_try_stays():
    crops = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 100]]).double()[None]
    boxes, valid = matched_boxes(crops, torch.zeros(1, 2).bool(), 100, draw, least=99, count=3)
    assert valid.all()
    own = boxes[0, 0].tolist()
    assert iou(own[0], own[1]) > 0.5
    last = tries(0, 3)[50]  # the first one is a box
    assert own[1][1] == pytest.approx(last[1] * (100 - (own[1][3] - own[1][1])), abs=1e-3)


def test_views_of_the_same_crop_have_the_same_boxes_and_a_mirrored_one_mirrored_boxes():
    crops, _ = views(20)
    crops = crops[:, :1].expand(-1, 2, -1)
    flip = torch.tensor([[False, True]]).expand(20, 2)
    same, _ = matched_boxes(crops, torch.zeros(20, 2).bool(), SIZE, draw)
    turned, _ = matched_boxes(crops, flip, SIZE, draw)
    assert torch.equal(same[:, 0], same[:, 1])
    assert torch.equal(turned[:, 0], same[:, 0])
    left, top, right, bottom = turned[:, 1].unbind(2)
    torch.testing.assert_close(torch.stack([SIZE - right, top, SIZE - left, bottom], 2), same[:, 1])


def test_views_with_little_or_nothing_in_common_have_no_boxes():
    crops = torch.tensor(
        [
            [[0, 0, 100, 100], [0, 200, 100, 100]],  # beside each other
            [[0, 0, 100, 100], [150, 0, 100, 100]],  # below each other
            [[0, 0, 224, 224], [0, 192, 224, 224]],  # 32 pixels in common
            [[0, 0, 224, 224], [0, 191, 224, 224]],  # 33
        ]
    ).double()
    boxes, valid = matched_boxes(crops, torch.zeros(4, 2).bool(), SIZE, draw)
    assert valid.tolist() == [False, False, False, True]
    assert boxes.isfinite().all()
    boxes, valid = matched_boxes(crops[:3], torch.zeros(3, 2).bool(), SIZE, draw, jitter=0.1)
    assert not valid.any()
    assert (boxes == torch.tensor([0.0, 0, SIZE, SIZE])).all()


def test_jitter_changes_the_second_view_alone_by_a_share_of_the_sides():
    crops, mirrored = views(300, scale=(0.6, 1.0))
    still, valid = matched_boxes(crops, mirrored, SIZE, draw)
    moved, _ = matched_boxes(crops, mirrored, SIZE, draw, jitter=0.1)
    assert torch.equal(moved[:, 0], still[:, 0])
    inside = ((moved > 0) & (moved < SIZE)).all(3)[:, 1] & valid[:, None]
    first, second = (boxes[:, 1][inside] for boxes in (still, moved))
    sides = first[:, 2:] - first[:, :2]
    shift = (second[:, :2] - first[:, :2]) / sides
    stretch = (second[:, 2:] - second[:, :2]) / sides - 1
    for change in (shift, stretch):
        assert change.abs().max() <= 0.1 + 1e-4
        assert change.abs().max() > 0.09
        assert change.mean().abs() < 0.01


def test_a_grid_gives_small_boxes_and_large_ones():
    crops, mirrored = views(300, scale=(0.8, 1.0))
    sides = {}
    for grid in (True, False):
        boxes, _ = matched_boxes(crops, mirrored, SIZE, draw, grid=grid, overlap=1.0)
        sides[grid] = (boxes[:, 0, :, 2] - boxes[:, 0, :, 0]).flatten()
    assert (sides[True] < 60).float().mean() > 0.4
    assert (sides[False] < 60).float().mean() < 0.3
    assert sides[True].max() > 150


def test_the_company_of_an_image_does_not_change_its_boxes():
    crops, mirrored = views(30)
    whole, _ = matched_boxes(crops, mirrored, SIZE, draw)
    for row in (0, 17):
        alone, _ = matched_boxes(
            crops[row, None],
            mirrored[row, None],
            SIZE,
            lambda name, rows, count, row=row: draw(name, rows + row, count),
        )
        assert torch.equal(alone[0], whole[row])


def test_boxes_as_large_as_the_view_are_refused():
    crops, mirrored = views(2)
    with pytest.raises(ValueError, match=r"^least: 224 pixels of a box's side, in views of 224"):
        matched_boxes(crops, mirrored, SIZE, draw, least=224)
