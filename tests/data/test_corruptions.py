"""Corruptions by the batch are those of one image at a time, and what their names promise."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import rgb_to_hsv
from plain_corruptions import PLAIN, SameNumbers
from scipy import stats

from raykb.data.corruptions import (
    CORRUPTIONS,
    EXTRA,
    SEVERITIES,
    blur,
    corrupted,
    digital,
    noise,
    weather,
)
from raykb.data.corruptions.draws import Draws
from raykb.data.datasets import DATASETS

ALL = {**CORRUPTIONS, **EXTRA}


def pictures(count=4, channels=3, height=32, width=32):
    """Return images (N, C, H, W) uint8 with even parts, edges, slopes, noise, black and white."""
    numbers = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 5, generator=numbers)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    blocks = torch.nn.functional.interpolate(coarse.flip(2), (height, width))
    noise = torch.rand(count, channels, height, width, generator=numbers)
    whole = torch.where(blocks > 0.5, 1.3 * smooth - 0.1, 0.8 * blocks) + 0.1 * noise
    return whole.clamp(0, 1).mul(255).round().byte()


def draws_of(name, severity, ids, seed=3):
    stream = ("corruption", name, severity)
    return Draws(seed=seed, stream=stream, ids=ids, device=torch.device("cpu"))


def apart(name, severity, images, constants):
    """Return by how much each value of the batch is off the plain formula's, at most 1."""
    ids, row = np.arange(5, 5 + len(images)), getattr(ALL[name], constants)[severity - 1]
    found = ALL[name].formula(images / 255, draws_of(name, severity, ids), *row)
    off = []
    for number, image in enumerate(images):
        plain = image.permute(1, 2, 0).numpy() / 255
        numbers = SameNumbers(draws_of(name, severity, ids[number : number + 1]))
        wanted = PLAIN[name](plain, numbers, *row).clip(0, 1)
        off.append(abs(found[number].clamp(0, 1).permute(1, 2, 0).numpy() - wanted))
    return np.stack(off)


# Constants as the sheet of the papers has them: large images, then small ones
TABLE = """
gaussian_noise     .08 .12 .18 .26 .38 | .04 .06 .08 .09 .10
shot_noise         60 25 12 5 3 | 500 250 100 75 50
impulse_noise      .03 .06 .09 .17 .27 | .01 .02 .03 .05 .07
defocus_blur       3,.1 4,.5 6,.5 8,.5 10,.5 | .3,.4 .4,.5 .5,.6 1,.2 1.5,.1
glass_blur         .7,1,2 .9,2,1 1,2,3 1.1,3,2 1.5,4,2 | .05,1,1 .25,1,1 .4,1,1 .25,1,2 .4,1,2
motion_blur        10,3 15,5 15,8 15,12 20,15 | 6,1 6,1.5 6,2 8,2 9,2.5
zoom_blur          1.11,.01 1.16,.01 1.21,.02 1.26,.02 1.31,.03
                   | 1.06,.01 1.11,.01 1.16,.01 1.21,.01 1.26,.01
snow               .1,.3,3,.5,10,4,.8 .2,.3,2,.5,12,4,.7 .55,.3,4,.9,12,8,.7
                   .55,.3,4.5,.85,12,8,.65 .55,.3,2.5,.85,12,12,.55
                   | .1,.2,1,.6,8,3,.95 .1,.2,1,.5,10,4,.9 .15,.3,1.75,.55,10,4,.9
                   .25,.3,2.25,.6,12,6,.85 .3,.3,1.25,.65,14,12,.8
frost              1,.4 .8,.6 .7,.7 .65,.7 .6,.75 | 1,.2 1,.3 .9,.4 .85,.4 .75,.45
fog                1.5,2 2,2 2.5,1.7 2.5,1.5 3,1.4 | .2,3 .5,3 .75,2.5 1,2 1.5,1.75
brightness         .1 .2 .3 .4 .5 | .05 .1 .15 .2 .3
contrast           .4 .3 .2 .1 .05 | .75 .5 .4 .3 .15
elastic_transform  488,170.8,24.4 488,19.52,48.8 12.2,2.44,4.88 17.08,2.44,4.88 29.28,2.44,4.88
                   | 0,0,2.56 1.6,6.4,2.24 2.56,1.92,1.92 3.2,1.28,1.6 3.2,.96,.96
pixelate           .6 .5 .4 .3 .25 | .95 .9 .85 .75 .65
jpeg_compression   25 18 15 10 7 | 80 65 58 50 40
speckle_noise      .15 .2 .35 .45 .6 | .06 .1 .12 .16 .2
gaussian_blur      1 2 3 4 6 | .4 .6 .7 .8 1
spatter            .65,.3,4,.69,.6,0 .65,.3,3,.68,.6,0 .65,.3,2,.68,.5,0 .65,.3,1,.65,1.5,1
                   .67,.4,1,.65,1.5,1
                   | .62,.1,.7,.7,.5,0 .65,.1,.8,.7,.5,0 .65,.3,1,.69,.5,0 .65,.1,.7,.69,.6,1
                   .65,.1,.5,.68,.6,1
saturate           .3,0 .1,0 2,0 5,.1 20,.2 | .3,0 .1,0 1.5,0 2,.1 2.5,.2
"""


def rows():
    """Yield name, constants of large and of small images of each row of the table."""
    for text in TABLE.replace("\n ", " ").strip().splitlines():
        name, *words = text.split()
        cells = [tuple(map(float, word.split(","))) for word in words if word != "|"]
        yield name, cells[:5], cells[5:]


def test_constants_are_those_of_the_paper_and_in_its_order():
    assert [name for name, *_ in rows()] == list(ALL)
    assert (len(CORRUPTIONS), len(EXTRA)) == (15, 4)
    for name, large, small in rows():
        np.testing.assert_allclose(ALL[name].large, large, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(ALL[name].small, small, rtol=1e-12, err_msg=name)


def test_kinds_are_those_of_the_paper():
    kinds = [corruption.kind for corruption in CORRUPTIONS.values()]
    assert kinds == ["noise"] * 3 + ["blur"] * 4 + ["weather"] * 4 + ["digital"] * 4
    assert [c.kind for c in EXTRA.values()] == ["noise", "blur", "weather", "digital"]


@pytest.mark.parametrize(
    ("constants", "channels", "height", "width"),
    [("small", 3, 32, 32), ("small", 1, 28, 37), ("large", 3, 40, 56)],
)
@pytest.mark.parametrize("name", ALL)
def test_a_batch_is_what_each_image_is_by_itself(name, constants, channels, height, width):
    images = pictures(3, channels, height, width)
    for severity in SEVERITIES:
        off = apart(name, severity, images, constants)
        if name == "glass_blur":  # a value next to a byte's border is cut to the one or the other
            assert off.max() < 1.01 / 255
            assert (off > 1e-4).mean() < 0.03
        else:
            assert off.max() < 1e-4


@pytest.mark.parametrize("name", ALL)
def test_what_becomes_of_an_image_depends_on_its_id_and_not_on_the_batch(name):
    images, ids = pictures(6), np.arange(40, 46)
    before = images.clone()
    whole = corrupted(images, name, 3, ids=ids, seed=1)
    assert torch.equal(images, before)
    picked = [4, 1]
    found = corrupted(images[picked], name, 3, ids=torch.tensor(ids[picked]), seed=1)
    assert torch.equal(found, whole[picked])


DRAWN = ["gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow"]
DRAWN += ["frost", "fog", "elastic_transform", "speckle_noise", "spatter"]


@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_is_of_the_seed_and_the_id_and_nothing_else_is(name):
    same = pictures(1).expand(4, -1, -1, -1)
    ids = np.array([7, 7, 8, 9])
    first, again, *others = corrupted(same, name, 5, ids=ids, seed=1)
    assert torch.equal(first, again)
    others.append(corrupted(same, name, 5, ids=ids, seed=2)[0])
    assert [not torch.equal(first, other) for other in others] == [name in DRAWN] * 3


def test_pieces_of_a_large_batch_are_the_batch():
    images, ids = pictures(20, height=112, width=112), np.arange(20)  # 14 are a piece
    whole = corrupted(images, "gaussian_noise", 1, ids=ids, seed=0)
    halves = [
        corrupted(images[part], "gaussian_noise", 1, ids=ids[part], seed=0)
        for part in (slice(9), slice(9, 20))
    ]
    assert torch.equal(torch.cat(halves), whole)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (1, 3, 7, 5), (1, 1, 1, 1), (0, 3, 32, 32)])
@pytest.mark.parametrize("name", ALL)
def test_shapes_and_bytes_are_kept_at_any_size(name, shape):
    images = torch.full(shape, 130, dtype=torch.uint8)
    for constants in ("small", "large"):
        found = corrupted(images, name, 5, ids=np.arange(shape[0]), seed=0, constants=constants)
        assert (found.shape, found.dtype) == (images.shape, torch.uint8)


@pytest.mark.parametrize(("side", "constants"), [(64, "small"), (65, "large")])
def test_without_a_word_constants_are_of_the_images_size(side, constants):
    images = pictures(1, height=8, width=side)
    found = corrupted(images, "contrast", 2, ids=[0], seed=0)
    wanted = corrupted(images, "contrast", 2, ids=[0], seed=0, constants=constants)
    assert torch.equal(found, wanted)


GROWS = ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"]
GROWS += ["brightness", "contrast", "pixelate", "jpeg_compression"]


@pytest.fixture(scope="module")
def clothes():
    """Return real images, (32, 1, 28, 28)."""
    _, test = DATASETS["fashion_mnist_sample"]()
    return torch.from_numpy(test.read(np.arange(32)).arrays["images"])


@pytest.mark.parametrize("constants", ["small", "large"])
@pytest.mark.parametrize("name", GROWS)
def test_what_is_more_severe_is_farther_from_the_image(name, constants, clothes):
    images = clothes
    if (name, constants) == ("pixelate", "large"):  # its grids are of the size that it is meant for
        large = torch.nn.functional.interpolate(images[:4].float(), (224, 224), mode="bilinear")
        images = large.round().byte()
    off = []
    for severity in SEVERITIES:
        ids = np.arange(len(images))
        found = corrupted(images, name, severity, ids=ids, seed=0, constants=constants)
        off.append((found.float() - images).abs().mean().item())
    assert off[0] > 0
    assert off == sorted(off)


EVEN = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast"]
EVEN += ["elastic_transform", "pixelate", "gaussian_blur"]


@pytest.mark.parametrize("constants", ["small", "large"])
@pytest.mark.parametrize("name", EVEN)
def test_what_is_even_stays_so_up_to_its_border(name, constants):
    images = torch.tensor([0, 37, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 32, 20)
    for severity in SEVERITIES:
        found = corrupted(images, name, severity, ids=[1, 2], seed=0, constants=constants)
        assert torch.equal(found, images)


# What single formulas promise


def test_photons_are_distributed_as_poisson_says():
    images = torch.full((1, 3, 200, 200), 102 / 255)
    for photons in (3, 60, 500):
        counts = noise.shot_noise(images, draws_of("shot_noise", 1, [0]), photons) * photons
        rate, values = 0.4 * photons, counts.numel()
        torch.testing.assert_close(counts.round(), counts, rtol=0, atol=1e-4)
        assert counts.mean().item() == pytest.approx(rate, abs=4 * (rate / values) ** 0.5)
        assert counts.var().item() == pytest.approx(rate, rel=4 * (2 / values) ** 0.5 + 0.01)


def test_black_pixels_have_no_photons_and_speckles():
    black = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    for name in ("shot_noise", "speckle_noise"):
        assert not corrupted(black, name, 5, ids=[0, 1], seed=0).any()


def test_as_much_salt_as_pepper_makes_its_share_of_impulses():
    images = torch.full((1, 3, 200, 200), 128, dtype=torch.uint8)
    found = corrupted(images, "impulse_noise", 5, ids=[0], seed=0, constants="large")
    for value in (0, 255):
        assert (found == value).double().mean().item() == pytest.approx(0.135, abs=0.005)


def test_streaks_begin_at_a_point_and_go_where_degrees_say():
    points = torch.zeros(4, 1, 9, 9)
    points[:, :, 4, 4] = 1.0
    found = blur.streaks(points, torch.tensor([0.0, 90.0, 180.0, 45.0]), 3, 2.0)
    weights = torch.exp(-(torch.arange(5.0) ** 2) / (2 * 2.0**2))
    weights /= torch.exp(-(torch.arange(7.0) ** 2) / (2 * 2.0**2)).sum()
    left, up = found[0, 0, 4, :5].flip(0), found[1, 0, :5, 4].flip(0)
    right, slanted = found[2, 0, 4, 4:], found[3, 0].diagonal()[:5].flip(0)
    for line in (left, up, right):
        torch.testing.assert_close(line, weights)
    # a diagonal has fewer pixels, so that some of them are read twice
    assert slanted[:4].gt(0).all()
    assert slanted.sum().item() > weights.sum().item()


def test_frost_has_the_colours_and_the_spread_of_photographs_of_it():
    draws = draws_of("frost", 1, np.arange(400))
    sheets = weather.ice_sheets(draws, 3, 32, 32)
    kinds = draws.uniform("sheet", high=5.0).long()
    for kind, (*tint, spread) in enumerate(weather.SHEETS):
        own = sheets[kinds == kind]
        assert 50 < len(own) < 110
        torch.testing.assert_close(own.mean((0, 2, 3)), torch.tensor(tint), rtol=0, atol=0.03)
        assert own.std((2, 3)).mean().item() == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize(("side", "step"), [(32, 0.074), (224, 0.047)])
def test_frost_is_as_rough_as_photographs_of_it_small_and_large(side, step):
    sheets = weather.ice_sheets(draws_of("frost", 1, np.arange(30)), 3, side, side).mean(1)
    assert sheets.diff(dim=1).abs().mean().item() == pytest.approx(step, rel=0.15)


def test_clouds_fill_their_range_and_are_smoother_the_faster_they_decay():
    roughness = []
    for decay in (1.4, 2.0, 3.0):
        clouds = weather.plasma(draws_of("fog", 1, np.arange(20)), 30, decay)
        assert clouds.shape == (20, 32, 32)
        assert clouds.amin((1, 2)).eq(0).all()
        assert clouds.amax((1, 2)).eq(1).all()
        roughness.append(clouds.diff(dim=2).abs().mean().item())
    assert roughness == sorted(roughness, reverse=True)


def test_a_point_of_a_cloud_is_the_mean_of_four_that_are_larger_and_a_number():
    draws, side = draws_of("fog", 1, [0]), 8
    drawn = draws.uniform("plasma", side, side, low=-1.0, high=1.0)[0].numpy()
    cloud, half, reach = np.zeros((side, side)), side // 2, 1.0
    corners, beside = ((-1, -1), (-1, 1), (1, -1), (1, 1)), ((-1, 0), (1, 0), (0, -1), (0, 1))
    while half:
        even, odd = range(0, side, 2 * half), range(half, side, 2 * half)
        for rows, columns, ways in ((odd, odd, corners), (even, odd, beside), (odd, even, beside)):
            for y, x in itertools.product(rows, columns):
                four = [cloud[(y + half * a) % side, (x + half * b) % side] for a, b in ways]
                cloud[y, x] = np.mean(four) + reach * drawn[y, x]
        half, reach = half // 2, reach / 1.5**2
    wanted = (cloud - cloud.min()) / np.ptp(cloud)
    np.testing.assert_allclose(weather.plasma(draws, side, 1.5)[0], wanted, atol=1e-5)


def test_fog_is_no_brighter_than_the_image():
    images = pictures(4) // 2
    for severity in SEVERITIES:
        found = corrupted(images, "fog", severity, ids=np.arange(4), seed=0)
        assert (found.amax((1, 2, 3)) <= images.amax((1, 2, 3))).all()


def test_brightness_keeps_hue_and_saturation():
    images = torch.tensor([[200, 100, 50], [40, 80, 10], [9, 9, 9]], dtype=torch.uint8)
    found = digital.brightness(images.view(3, 3, 1, 1) / 255, draws_of("brightness", 1, [0]), 0.2)
    for one, other in zip(images.numpy() / 255, found.flatten(1).numpy(), strict=True):
        wanted, brighter = rgb_to_hsv(one), rgb_to_hsv(other)
        np.testing.assert_allclose(brighter, wanted + np.array([0, 0, 0.2]), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "gausian_noise"}, r"name: 'gausian_noise' is no .* mean 'gaussian_noise'"),
        ({"name": "rain"}, r"name: 'rain' is no corruption; choose from gaussian_noise, shot"),
        ({"severity": 0}, r"severity: 0, must be a whole number from 1 to 5; images that are not"),
        ({"severity": 6}, "severity: 6, must be"),
        ({"constants": "tiny"}, "constants: 'tiny', must be 'large' or 'small', or null"),
        ({"ids": [1]}, "ids: 1 for 2 images; must be one for each"),
        ({"images": torch.zeros(2, 3, 8, 8)}, "images: torch.float32 .* must be uint8"),
        ({"images": torch.zeros(3, 8, 8).byte()}, r"images: torch.uint8 of shape \(3, 8, 8\)"),
    ],
)
def test_what_has_no_meaning_is_refused(given, told):
    right = {"images": pictures(2), "name": "fog", "severity": 1, "ids": [1, 2], "seed": 0}
    with pytest.raises(ValueError, match=told):
        corrupted(**right | given)


def test_normal_numbers_are_normal_and_the_two_of_a_pair_strangers():
    found = draws_of("snow", 1, np.arange(50)).normal("flakes", 1, 40, 50).flatten(1)
    assert stats.kstest(found.flatten().numpy(), "norm").pvalue > 0.01
    one, other = found.chunk(2, 1)
    products = torch.stack([one * other, one**2 * other**2 - 1, one.abs() * other])
    assert products.mean((1, 2)).abs().max().item() < 0.03
    odd = draws_of("snow", 1, np.arange(50)).normal("flakes", 3)
    assert odd.shape == (50, 3)


def test_uniform_numbers_fill_their_range():
    found = draws_of("fog", 1, np.arange(40)).uniform("plasma", 25, 40, low=-2.0, high=3.0)
    assert stats.kstest(found.flatten().numpy(), "uniform", (-2, 5)).pvalue > 0.01
    assert -2 <= found.min() < found.max() < 3
