"""Each view against the same view written for one image at a time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from raykb.data.views import VIEWS, CropFlipView, ImageView, ResizedCropView

RGB: dict[str, Any] = {"mean": (0.49, 0.48, 0.45), "std": (0.2, 0.25, 0.3)}
GREY: dict[str, Any] = {"mean": [0.3], "std": [0.2]}


def sample(count: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=g)


def smooth(count: int, height: int, width: int) -> Tensor:
    low = sample(count, 3, 4, 5).float()
    big = torch.nn.functional.interpolate(low, (height, width), mode="bilinear")
    return big.to(torch.uint8)


def uniforms(count: int, draws: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.rand(count, draws, dtype=torch.float64, generator=g)


def naive_crop_flip(view: CropFlipView, image: Tensor, numbers: list[float]) -> Tensor:
    height, width = image.shape[1:]
    crop_y, crop_x, flip, hole_y, hole_x = numbers
    room = 2 * view.padding + 1
    top, left = int(crop_y * room), int(crop_x * room)
    image = tv.crop(tv.pad(image, [view.padding]), top, left, height, width)
    if view.flip and flip < 0.5:
        image = tv.horizontal_flip(image)
    out = tv.normalize(image.float() / 255, list(view.mean), list(view.std))
    if view.cutout:
        y, x, half = int(hole_y * height), int(hole_x * width), view.cutout // 2
        out[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
    return out


CROP_FLIP = [
    (CropFlipView(**RGB), (3, 32, 32)),
    (CropFlipView(**RGB, cutout=16), (3, 32, 32)),
    (CropFlipView(**GREY, padding=2, cutout=7), (1, 28, 28)),
    (CropFlipView(**GREY, padding=9, flip=False), (3, 20, 11)),
    (CropFlipView(mean=[0.5], std=RGB["std"], padding=0, cutout=100), (3, 6, 7)),
    (CropFlipView(**GREY, padding=1, cutout=2), (1, 1, 1)),
]


@pytest.mark.parametrize(("view", "shape"), CROP_FLIP)
def test_crop_flip_equals_torchvision_one_image_at_a_time(
    view: CropFlipView, shape: tuple[int, int, int]
) -> None:
    images, numbers = sample(200, *shape), uniforms(200, view.draws)
    rows = zip(images, numbers.tolist(), strict=True)
    expected = torch.stack([naive_crop_flip(view, image, row) for image, row in rows])
    assert torch.equal(view(images, numbers), expected)


def test_crop_flip_reaches_every_crop_and_flips_half() -> None:
    view = CropFlipView(mean=[0.0], std=[1.0], padding=2)
    ramp = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(5000, -1, -1, -1)
    out = view(ramp, uniforms(5000, 5)).flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(out) == 5 * 5 * 2
    assert out.min() > 50  # 100 expected of each


def test_the_plain_crop_flip_view_is_the_centre_crop_unflipped() -> None:
    view = CropFlipView(**RGB)
    images = sample(8)
    centre = torch.tensor([[0.5, 0.5, 0.9, 0.0, 0.0]], dtype=torch.float64).expand(8, -1)
    assert torch.equal(view.plain(images), view(images, centre))


def naive_resized_crop(view: ResizedCropView, image: Tensor, numbers: list[float]) -> Tensor:
    """Grid sampling by a loop over pixels, then torchvision's colour functions in [0, 1]."""
    channels, height, width = image.shape
    top, left, tall, wide = view.boxes(torch.tensor([numbers]).double(), height, width)[0].tolist()
    values, out = image.double() / 255, torch.zeros(channels, view.size, view.size).double()

    def weight(t: float) -> float:  # Keys' cubic with a = -0.75
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    for i in range(view.size):
        for j in range(view.size):
            column = view.size - 1 - j if view.flip and numbers[4] < 0.5 else j
            y = top + (i + 0.5) * tall / view.size - 0.5
            x = left + (column + 0.5) * wide / view.size - 0.5
            for row in range(math.floor(y) - 1, math.floor(y) + 3):
                for col in range(math.floor(x) - 1, math.floor(x) + 3):
                    pixel = values[:, min(max(row, 0), height - 1), min(max(col, 0), width - 1)]
                    out[:, i, j] += weight(y - row) * weight(x - col) * pixel
    out = out.clamp(0, 1)
    brightness, contrast, saturation = (1 + view.jitter * (2 * u - 1) for u in numbers[5:8])
    out = (out * brightness).clamp(0, 1)

    def grey(rgb: Tensor) -> Tensor:
        return rgb if channels == 1 else 0.299 * rgb[:1] + 0.587 * rgb[1:2] + 0.114 * rgb[2:]

    out = (grey(out).mean() * (1 - contrast) + out * contrast).clamp(0, 1)
    out = (grey(out) * (1 - saturation) + out * saturation).clamp(0, 1)
    if view.lighting:
        normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(numbers[8:]).double())
        axes = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140],
                             [-0.5836, -0.6948, 0.4203]]).double()  # fmt: skip
        shift = axes @ (normal * view.lighting * torch.tensor([0.2175, 0.0188, 0.0045]))
        out += shift[:, None, None]
    mean, std = (torch.tensor(s).double().view(-1, 1, 1) for s in (view.mean, view.std))
    return ((out - mean) / std).float()


RESIZED_CROP = [
    (ResizedCropView(**RGB, size=9), (3, 21, 16)),
    (ResizedCropView(**RGB, size=12, flip=False, jitter=1.0, lighting=0.5), (3, 8, 8)),
    (ResizedCropView(**RGB, size=5, scale=(0.5, 0.6), ratio=(0.2, 5.0), jitter=0.0), (3, 9, 30)),
    (ResizedCropView(**GREY, size=7, lighting=0.0), (1, 12, 14)),
]


@pytest.mark.parametrize(("view", "shape"), RESIZED_CROP)
def test_resized_crop_equals_a_loop_over_pixels(
    view: ResizedCropView, shape: tuple[int, int, int]
) -> None:
    images, numbers = sample(4, *shape), uniforms(4, view.draws)
    rows = zip(images, numbers.tolist(), strict=True)
    expected = torch.stack([naive_resized_crop(view, image, row) for image, row in rows])
    torch.testing.assert_close(view(images, numbers), expected, atol=2e-4, rtol=1e-4)


def test_resized_crop_is_near_torchvision_s_on_smooth_images() -> None:
    view = ResizedCropView(mean=[0.0], std=[1.0], size=64, jitter=0.0, lighting=0.0)
    images, numbers = smooth(8, 70, 90), uniforms(8, 11)
    out = view(images, numbers)
    boxes = view.boxes(numbers, 70, 90).long().tolist()
    for row, (top, left, tall, wide) in enumerate(boxes):
        cut = tv.resized_crop(
            images[row], top, left, tall, wide, [64, 64],
            interpolation=tv.InterpolationMode.BICUBIC,
        ).float() / 255  # fmt: skip
        expected = cut.flip(2) if numbers[row, 4] < 0.5 else cut
        assert (out[row] - expected).abs().mean() < 0.01


@pytest.mark.parametrize(("height", "width"), [(300, 200), (100, 400), (1, 7)])
def test_boxes_lie_inside_and_keep_their_area(height: int, width: int) -> None:
    view = ResizedCropView(**RGB, scale=(0.2, 1.0), ratio=(0.5, 2.0))
    numbers = uniforms(2000, 11)
    top, left, tall, wide = view.boxes(numbers, height, width).unbind(1)
    assert (torch.stack([top, left]) >= 0).all()
    assert (torch.stack([tall, wide]) >= 1).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()
    if height > 1:
        share = tall * wide / (height * width)
        torch.testing.assert_close(share, 0.2 + 0.8 * numbers[:, 0], atol=0.02, rtol=0)
    if (height, width) == (300, 200):
        ratio = wide / tall
        assert ratio.min() > 0.49
        assert ratio.max() < 2.03


@pytest.mark.parametrize(("height", "width"), [(70, 90), (31, 20), (64, 64)])
def test_the_plain_resized_crop_view_is_torchvision_s_centre_crop(height: int, width: int) -> None:
    view = ResizedCropView(mean=[0.0], std=[1.0], size=64)
    images = smooth(3, height, width)
    long_side = [round(side * 96 / min(height, width)) for side in (height, width)]
    resized = tv.resize(images, long_side, tv.InterpolationMode.BICUBIC, antialias=True)
    top, left = ((side - 64) // 2 for side in long_side)
    expected = tv.crop(resized, top, left, 64, 64).float() / 255
    torch.testing.assert_close(
        view.plain(images), expected, atol=1.5 / 255, rtol=0
    )  # it rounds twice


def test_no_lighting_and_no_jitter_leave_the_colours() -> None:
    quiet = ResizedCropView(mean=[0.0], std=[1.0], size=16, jitter=0.0, lighting=0.0)
    flat = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(4, 3, 20, 20)
    expected = (flat[:, :, :16, :16].float() / 255).contiguous()
    torch.testing.assert_close(quiet(flat, uniforms(4, 11)), expected)
    assert quiet(flat, torch.zeros(4, 11)).isfinite().all()
    loud = ResizedCropView(mean=[0.0], std=[1.0], size=16)
    assert loud(flat, torch.zeros(4, 11)).isfinite().all()  # 0 has no finite normal quantile


VIEW_CASES: list[ImageView] = [
    CropFlipView(**RGB, cutout=8),
    ResizedCropView(**RGB, size=24),
]


@pytest.mark.parametrize("view", VIEW_CASES, ids=lambda view: type(view).__name__)
class TestEveryView:
    def test_a_row_depends_on_nothing_but_itself(self, view: ImageView) -> None:
        images, numbers = sample(300), uniforms(300, view.draws)
        whole = view(images, numbers)
        order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(view(images[order], numbers[order]), whole[order])
        torch.testing.assert_close(view(images[7:8], numbers[7:8]), whole[7:8])
        torch.testing.assert_close(view.plain(images)[7:8], view.plain(images[7:8]))

    def test_the_input_is_left_alone_and_the_output_is_float32(self, view: ImageView) -> None:
        images, numbers = sample(4), uniforms(4, view.draws)
        out, plain = view(images, numbers), view.plain(images)
        assert out.dtype == plain.dtype == torch.float32
        assert out.shape == plain.shape
        assert torch.equal(images, sample(4))
        assert torch.equal(numbers, uniforms(4, view.draws))

    def test_an_empty_batch_stays_empty(self, view: ImageView) -> None:
        images = sample(2)
        shape = view.plain(images).shape[1:]
        assert view(images[:0], uniforms(0, view.draws)).shape == (0, *shape)
        assert view.plain(images[:0]).shape == (0, *shape)

    def test_wrong_uniforms_are_refused(self, view: ImageView) -> None:
        with pytest.raises(ValueError, match=rf"uniforms: shape \(2, 4\); .*\(2, {view.draws}\)"):
            view(sample(2), uniforms(2, 4))
        with pytest.raises(ValueError, match=r"uniforms: a number outside \[0, 1\)"):
            view(sample(2), torch.ones(2, view.draws))

    def test_wrong_images_are_refused(self, view: ImageView) -> None:
        with pytest.raises(TypeError, match=r"images: dtype torch.float32; must be torch.uint8"):
            view(sample(2).float(), uniforms(2, view.draws))
        with pytest.raises(ValueError, match=r"images: shape \(3, 32, 32\); .*images\[None\]"):
            view.plain(sample(2)[0])
        with pytest.raises(ValueError, match=r"mean: 3 values for images of 1 channel\(s\)"):
            view.plain(sample(2, 1))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"mean: \(0.5, 0.5\); must be 1 or 3 finite numbers"),
        ({"std": ()}, r"std: \(\); must be 1 or 3"),
        ({"mean": [math.nan]}, r"mean: \[nan\]"),
        ({"std": [0.0]}, r"std: \[0.0\]; must be above 0"),
    ],
)
def test_statistics_without_meaning_are_refused(
    name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        VIEWS[name](**{**RGB, **change})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("crop_flip", {"padding": -1}, r"padding: -1, must be at least 0"),
        ("crop_flip", {"cutout": -8}, r"cutout: -8, must be at least 0"),
        ("resized_crop", {"size": 0}, r"size: 0; must be at least 1"),
        ("resized_crop", {"scale": (0.5, 1.5)}, r"scale: \(0.5, 1.5\); .*share in \(0, 1\]"),
        ("resized_crop", {"ratio": (2.0, 1.0)}, r"ratio: \(2.0, 1.0\)"),
        ("resized_crop", {"jitter": 1.2}, r"jitter: 1.2; must lie in \[0, 1\]"),
        ("resized_crop", {"lighting": -0.1}, r"lighting: -0.1; must be 0"),
    ],
)
def test_arguments_without_meaning_are_refused(
    name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        VIEWS[name](**{**RGB, **change})


def test_lighting_is_refused_on_grey_images() -> None:
    with pytest.raises(ValueError, match=r"images: 1 channel\(s\) with lighting 0.1; .*to 0"):
        ResizedCropView(**GREY)(sample(2, 1), uniforms(2, 11))
