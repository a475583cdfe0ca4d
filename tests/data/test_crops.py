"""Random crops by the batch are what torchvision makes of one image at a time."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from raykb.data.crops import (
    DRAWS,
    RandomCrops,
    blurred,
    grey,
    jittered,
    resized_crops,
    turned,
)
from raykb.data.views import crop_boxes
from raykb.engine.seeding import keyed_uniform, stream_seed

COUNT = 60
IDS = np.arange(3, 3 + 5 * COUNT, 5)
BARE = {"jitter": 0.0, "grey": 0.0, "blur": (0.0,)}


def images(count=COUNT, channels=3, height=16, width=16):
    numbers = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=numbers)


def floats(count=5, channels=3, side=9):
    return images(count, channels, side, side) / 255


@pytest.mark.parametrize("size", [5, 20, 37])
def test_a_crop_is_resized_as_torchvision_does_antialiased(size):
    whole, numbers = images(8, height=20, width=26), torch.Generator().manual_seed(1)
    draws = torch.rand(8, 4, generator=numbers, dtype=torch.float64)
    boxes = crop_boxes(draws, 20, 26, (0.05, 1.0), (0.5, 2.0))
    mirrored = torch.arange(8) % 2 == 0
    found = resized_crops(whole, boxes, mirrored, size)
    for image, box, flip, own in zip(whole, boxes, mirrored, found, strict=True):
        top, left, tall, wide = map(int, box)
        wanted = V.resized_crop(image.float(), top, left, tall, wide, [size, size], antialias=True)
        wanted = wanted.flip(2) if flip else wanted
        torch.testing.assert_close(own, wanted / 255, rtol=0, atol=1e-5)


def test_colours_are_changed_as_torchvision_does():
    factors = torch.tensor(
        [[0.3, 1.7, 0.2, 0.1], [1.6, 0.4, 1.9, -0.2], [1.0, 1.0, 1.0, 0.5], [0.0, 1.2, 1.0, 0.0]]
    )
    whole = floats(len(factors))
    for image, each, own in zip(whole, factors.tolist(), jittered(whole, factors), strict=True):
        wanted = V.adjust_contrast(V.adjust_brightness(image, each[0]), each[1])
        wanted = V.adjust_hue(V.adjust_saturation(wanted, each[2]), each[3])
        torch.testing.assert_close(own, wanted, rtol=0, atol=2e-3)  # its luma has 4 digits


def test_a_hue_turned_in_three_steps_of_a_third_is_as_it_was():
    whole, third = floats(), torch.full((5, 1, 1), 1 / 3)
    once = turned(whole, third)
    torch.testing.assert_close(once, whole.roll(1, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned(turned(once, third), third), whole, rtol=0, atol=1e-5)


def test_images_without_colour_keep_to_brightness_and_contrast():
    whole = floats(channels=1)
    factors = torch.tensor([[0.7, 1.3, 0.1, 0.4]]).expand(5, -1)
    wanted = jittered(whole.expand(-1, 3, -1, -1), torch.tensor([[0.7, 1.3, 1.0, 0.0]] * 5))
    torch.testing.assert_close(jittered(whole, factors), wanted[:, :1])
    assert grey(whole) is whole


def test_a_blur_is_a_truncated_gaussian_that_keeps_what_is_even():
    impulse = torch.zeros(2, 1, 41, 41)
    impulse[:, :, 20, 20] = 1.0
    for sigma, own in zip((0.5, 2.0), blurred(impulse, torch.tensor([0.5, 2.0])), strict=True):
        line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))
        line /= line.sum()
        torch.testing.assert_close(own[0, 18:23, 18:23], line[:, None] * line)
        assert own.sum().item() == pytest.approx(1.0)
    even = torch.full((1, 3, 12, 12), 0.4)
    torch.testing.assert_close(blurred(even, torch.tensor([1.5])), even)


def test_a_view_is_what_its_numbers_say_whatever_the_batch():
    crops = RandomCrops(size=12, scale=(0.2, 0.9), strength=0.5, blur=(1.0, 0.0), solarize=(0, 1))
    whole = images()
    views = crops.views(whole, IDS, 7, 3)
    assert views.shape == (len(IDS), 2, 3, 12, 12)
    assert views.dtype == torch.uint8
    rows = [4, 50, 11]
    assert torch.equal(crops.views(whole[rows], IDS[rows], 7, 3), views[rows])
    assert not torch.equal(views[:, 0], views[:, 1])
    for seed, epoch in ((8, 3), (7, 4)):
        assert not torch.equal(crops.views(whole, IDS, seed, epoch), views)


def test_the_first_view_is_the_same_however_many_there_are():
    crops, whole = RandomCrops(), images()
    few, many = (crops.views(whole, IDS, 0, 0, count) for count in (1, 3))
    assert torch.equal(few[:, 0], many[:, 0])


@pytest.mark.parametrize("flip", [False, True])
def test_without_colours_a_view_is_the_drawn_crop(flip):
    crops = RandomCrops(flip=flip, scale=(0.3, 0.6), ratio=(0.5, 1.5), **BARE)
    whole = images(height=18)
    numbers = keyed_uniform(stream_seed(5, "crop", 2, 0), IDS, DRAWS)
    boxes = crop_boxes(numbers[:, :4], 18, 16, (0.3, 0.6), (0.5, 1.5))
    mirrored = (numbers[:, 4] < 0.5) & flip
    wanted = (resized_crops(whole, boxes, mirrored, 16) * 255).round().byte()
    assert torch.equal(crops.views(whole, IDS, 5, 2)[:, 0], wanted)


def share(views, others):
    """Return the share of views that differ."""
    return (views != others).flatten(1).any(1).double().mean().item()


@pytest.mark.parametrize(
    ("name", "value", "probability"),
    [("jitter", 0.8, 0.8), ("grey", 0.3, 0.3), ("blur", (0.0, 0.6), 0.6), ("solarize", (1, 0), 0)],
)
def test_each_change_comes_to_its_share_of_the_views(name, value, probability):
    ids, whole = np.arange(1000), images(1000, height=8, width=8)
    plain, changed = (
        RandomCrops(scale=(1.0, 1.0), ratio=(1.0, 1.0), **BARE | given).views(whole, ids, 0, 0)
        for given in ({}, {name: value})
    )
    assert share(changed[:, 1], plain[:, 1]) == pytest.approx(probability, abs=0.05)
    if name == "solarize":
        first = plain[:, 0]
        assert torch.equal(changed[:, 0], torch.where(first < 128, first, 255 - first))


def test_small_crops_are_of_small_parts_and_of_their_own_draws():
    crops, whole = RandomCrops(local_size=6, local_scale=(0.1, 0.2)), images()
    local = crops.local(whole, IDS, 0, 0, 4)
    assert local.shape == (len(IDS), 4, 3, 6, 6)
    assert RandomCrops().local(whole, IDS, 0, 0, 2).shape[3:] == (8, 8)
    assert crops.local(whole, IDS, 0, 0, 0).shape[1] == 0
    same = RandomCrops(size=6, scale=(0.1, 0.2)).views(whole, IDS, 0, 0, 4)
    assert share(local[:, 0], same[:, 0]) > 0.9


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"scale": (0.0, 1.0)}, r"scale: \[0.0, 1.0\], must be \(least, greatest\) in \(0, 1\]"),
        ({"local_scale": (0.5, 0.2)}, r"local_scale: \[0.5, 0.2\]"),
        ({"ratio": (2.0, 1.0)}, r"ratio: \[2.0, 1.0\], must be"),
        ({"blur": ()}, r"blur: \(\), must be a share"),
        ({"grey": 1.5}, r"grey: \[1.5\], must be a share in \[0, 1\]"),
        ({"size": 0, "strength": -1.0}, r"size: 0, must be .*; strength: -1.0, must be"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        RandomCrops(**given)


def test_other_images_and_ids_are_refused():
    with pytest.raises(ValueError, match=r"images: torch.float32 .* must be uint8"):
        RandomCrops().views(floats(), np.arange(5), 0, 0)
    with pytest.raises(ValueError, match="ids: 4 for 5 images"):
        RandomCrops().views(images(5), np.arange(4), 0, 0)
