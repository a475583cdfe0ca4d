"""Weak and strong views: keyed, batched, and what an image at a time gives."""

import numpy as np
import pytest
import torch

from raykb.data.operations import apply_operation
from raykb.data.strong import PAIRS, RANGES, WeakStrong
from raykb.engine.seeding import keyed_uniform, stream_seed


def images(count=40, channels=3, height=16, width=16):
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator())


def naive_weak(image, draws, crop):
    """Pad by reflection, crop, flip, of one image and its three uniform numbers."""
    _, height, width = image.shape
    y, x, flip = draws.tolist()
    pads = [(0, 0), *((int(crop * side), int(crop * side)) for side in (height, width))]
    padded = np.pad(image.numpy(), pads, mode="reflect")
    top, left = int(y * (2 * pads[1][0] + 1)), int(x * (2 * pads[2][0] + 1))
    cropped = torch.from_numpy(padded[:, top : top + height, left : left + width])
    return cropped.flip(2) if flip < 0.5 else cropped


def naive_strong(image, draws, *, crop, operations, cutout):
    """The strong view of one image and its uniform numbers."""
    out = naive_weak(image, draws[:3], crop)[None]
    for choice, level in draws[3:-3].view(operations, 2).tolist():
        name = list(RANGES)[int(choice * 14)]
        low, high = RANGES[name]
        if name != "Identity":
            out = apply_operation(out, name, low + level * (high - low))
    side, x, y = draws[-3:].tolist()
    _, height, width = image.shape
    centre = torch.tensor([[x * width, y * height]], dtype=torch.float64)
    return apply_operation(out, "Cutout", cutout * side, centre=centre)[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 20), (5, 3)])
@pytest.mark.parametrize("crop", [0.125, 0.4])
def test_views_are_those_of_an_image_at_a_time(channels, height, width, crop):
    given, ids = images(60, channels, height, width), np.arange(60) * 7
    weak, strong = WeakStrong(crop=crop, operations=2, cutout=0.6)(given, ids, 5, 3)
    draws = keyed_uniform(stream_seed(5, "weak view", 3), ids, 3)
    expected = [naive_weak(image, row, crop) for image, row in zip(given, draws, strict=True)]
    assert torch.equal(weak, torch.stack(expected))
    draws = keyed_uniform(stream_seed(5, "strong view", 3), ids, 10)
    expected = [
        naive_strong(image, row, crop=crop, operations=2, cutout=0.6)
        for image, row in zip(given, draws, strict=True)
    ]
    assert torch.equal(strong, torch.stack(expected)[:, None])


def test_a_view_depends_on_seed_epoch_and_id_alone():
    given, ids, view = images(), np.arange(40) + 100, WeakStrong()
    both = view(given, ids, 0, 0)
    some = np.array([31, 4, 17])
    for whole, part in zip(both, view(given[some], ids[some], 0, 0), strict=True):
        assert torch.equal(whole[some], part)
    for other in (view(given, ids, 1, 0), view(given, ids, 0, 1), view(given, ids + 1, 0, 0)):
        for mine, theirs in zip(both, other, strict=True):
            assert (mine != theirs).flatten(1).any(1).float().mean() > 0.9


def test_strong_views_differ_from_weak_ones_and_both_from_the_image():
    given, ids = images(400), np.arange(400)
    weak, strong = WeakStrong()(given, ids, 0, 0)
    assert (weak != strong[:, 0]).flatten(1).any(1).float().mean() > 0.99
    assert (weak != given).flatten(1).any(1).float().mean() > 0.95
    assert weak.dtype == strong.dtype == torch.uint8


def test_half_of_the_weak_views_are_mirrored():
    given = images(2000, 1, 4, 4)
    weak, _ = WeakStrong(crop=0)(given, np.arange(2000), 0, 0)
    mirrored = (weak == given.flip(3)).flatten(1).all(1)
    assert torch.equal(weak[~mirrored], given[~mirrored])
    assert 0.46 < mirrored.float().mean() < 0.54


def test_nothing_switched_on_gives_the_image():
    given = images()
    nothing = WeakStrong(crop=0, flip=False, operations=0, cutout=0)
    weak, strong = nothing(given, np.arange(40), 0, 0)
    assert torch.equal(weak, given)
    assert torch.equal(strong, given[:, None])


def test_cutout_is_grey_and_at_most_its_share_of_the_width():
    black = torch.zeros(300, 3, 20, 20, dtype=torch.uint8)
    view = WeakStrong(crop=0, flip=False, operations=0, cutout=0.5)
    _, strong = view(black, np.arange(300), 0, 0)
    strong = strong[:, 0]
    hole = strong[:, 0] != 0
    assert torch.equal(
        strong[hole[:, None].expand_as(strong)].unique(), torch.tensor([114, 123, 125])
    )
    sides = hole.any(1).sum(1)
    assert sides.max() <= 0.5 * 20 + 1
    assert sides.unique().numel() > 5


def test_every_operation_is_drawn_about_as_often(monkeypatch):
    drawn = {}

    def count(images, name, magnitude, **how):
        drawn[name] = drawn.get(name, 0) + len(images)
        return images

    monkeypatch.setattr("raykb.data.strong.apply_operation", count)
    WeakStrong()(images(1400, 1, 2, 2), np.arange(1400), 0, 0)
    assert drawn.pop("Cutout") == 1400
    assert drawn.keys() == RANGES.keys() - {"Identity"}
    assert 240 < min(drawn.values()) <= max(drawn.values()) < 360


def test_the_table_builds_it():
    assert PAIRS["fixmatch"](crop=0.1) == WeakStrong(crop=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": 1.0, "cutout": -0.1}, r"crop: 1\.0, must be in \[0, 1\); cutout: -0\.1"),
        ({"operations": -1}, "operations: -1, must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeakStrong(**arguments)


@pytest.mark.parametrize(
    ("given", "ids", "message"),
    [
        (images(4).float(), 4, r"images: torch\.float32 of shape \(4, 3, 16, 16\); must be uint8"),
        (images(4)[0], 4, r"of shape \(3, 16, 16\)"),
        (images(4, 2), 4, r"of shape \(4, 2, 16, 16\)"),
        (images(4), 3, "ids: 3 for 4 images"),
    ],
)
def test_wrong_images_are_refused(given, ids, message):
    with pytest.raises(ValueError, match=message):
        WeakStrong()(given, np.arange(ids), 0, 0)


def test_further_strong_views_follow_the_first_and_leave_it_as_it_was():
    given, ids = images(count=6), np.arange(6)
    weak, one = WeakStrong()(given, ids, 0, 1)
    same, three = WeakStrong(strong_views=3)(given, ids, 0, 1)
    assert torch.equal(weak, same)
    assert three.shape == (6, 3, 3, 16, 16)
    first, second, third = three.unbind(1)
    assert torch.equal(first, one[:, 0])
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    with pytest.raises(ValueError, match="strong_views: 0, must be at least 1"):
        WeakStrong(strong_views=0)
