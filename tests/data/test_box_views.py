"""Boxes of two views show the same pixels of an image."""

import numpy as np
import pytest
import torch

from raykb.data.box_views import BoxesView, parts_seen
from raykb.data.crops import RandomCrops
from raykb.data.views import CropFlipView

FORM = CropFlipView(mean=[0.0], std=[1.0])
PLAIN = RandomCrops(scale=(0.4, 1.0), jitter=0.0, grey=0.0, blur=(0.0,))
SIDE = 64


def made(view, images, epoch=0):
    return view.finish(view.train({"images": images}, np.arange(len(images)) + 5, 3, epoch))


def ramps(count):
    """Return images whose brightness is the column, and images whose brightness is the row."""
    column = (torch.arange(SIDE) * 2).byte().expand(count, 1, SIDE, SIDE)
    return column, column.transpose(2, 3)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_middle_of_a_box_has_the_same_pixels_in_both_views(axis):
    images = ramps(200)[axis]
    fields = made(BoxesView(PLAIN, FORM, count=3, least=8), images)
    assert fields["views"].shape == (200, 2, 1, SIDE, SIDE)
    assert fields["boxes"].shape == (200, 2, 3, 4)
    valid = fields["valid"]
    assert valid.float().mean() > 0.9
    centres = (fields["boxes"][..., :2] + fields["boxes"][..., 2:]) / SIDE - 1  # (N, 2, K, 2)
    found = torch.nn.functional.grid_sample(
        fields["views"].flatten(0, 1),
        centres.flatten(0, 1)[:, :, None],
        align_corners=False,
        padding_mode="border",
    ).view(200, 2, 3)
    first, second = found[valid].unbind(1)
    assert (first - second).abs().max() * 127.5 < 1.5  # in pixels of the image
    assert first.std() > 0.05


def test_parts_are_those_that_the_crops_show():
    columns, _ = ramps(50)
    views = PLAIN.views(columns, np.arange(50), 3, 0)
    parts, mirrored = parts_seen(PLAIN, columns, np.arange(50), 3, 0)
    level = views.double().mean((2, 3, 4)) / 2  # of the crop's middle column
    left, width = parts[:, :, 1], parts[:, :, 3]
    assert (level - (left + (width - 1) / 2)).abs().max() < 0.5
    rising = views[..., -1].double().mean((2, 3)) > views[..., 0].double().mean((2, 3))
    assert torch.equal(mirrored, ~rising)
    assert mirrored.any()
    assert not mirrored.all()


def test_crops_that_are_not_mirrored_are_not():
    still = RandomCrops(flip=False)
    assert not parts_seen(still, ramps(50)[0], np.arange(50), 3, 0)[1].any()


def test_boxes_belong_to_image_and_epoch_in_any_company():
    view, images = BoxesView(PLAIN, FORM, least=8), ramps(6)[0]
    whole = made(view, images)
    alone = view.finish(view.train({"images": images[4:5]}, np.array([9]), 3, 0))
    for name, value in alone.items():
        assert torch.equal(value[0], whole[name][4]), name
    assert not torch.equal(made(view, images, epoch=1)["boxes"], whole["boxes"])


def test_settings_reach_the_boxes():
    images = ramps(40)[0]
    plain = BoxesView(PLAIN, FORM, count=4, least=8)
    boxes = made(plain, images)["boxes"]
    for options in ({"grid": False}, {"overlap": 0.01}, {"jitter": 0.2}, {"least": 12}):
        other = BoxesView(PLAIN, FORM, **{"count": 4, "least": 8} | options)
        assert not torch.equal(made(other, images)["boxes"], boxes), options


def test_boxes_that_fit_into_no_view_are_refused():
    with pytest.raises(ValueError, match=r"^least: 64 pixels of a box's side, in views of 64"):
        made(BoxesView(PLAIN, FORM, least=64), ramps(2)[0])
