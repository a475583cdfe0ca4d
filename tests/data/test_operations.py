"""Every operation against Pillow, one image at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from raykb.data.operations import NAMES, OPERATIONS, apply_operation

SIZES = [(32, 32), (28, 28), (33, 47), (2, 5), (1, 1)]
COUNT = {(32, 32): 512, (28, 28): 512, (33, 47): 512, (2, 5): 64, (1, 1): 16}


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


REFERENCE: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "ShearX": lambda image, v: affine(image, 1, v, 0, 0, 1, 0),
    "ShearY": lambda image, v: affine(image, 1, 0, 0, v, 1, 0),
    "TranslateX": lambda image, v: affine(image, 1, 0, v * image.width, 0, 1, 0),
    "TranslateY": lambda image, v: affine(image, 1, 0, 0, 0, 1, v * image.height),
    "Rotate": lambda image, v: image.rotate(v),
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Solarize": lambda image, v: ImageOps.solarize(image, v),
    "Posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "Contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "Color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "Brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "Sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
}


def cutout(image: Image.Image, v: float, x: float, y: float) -> Image.Image:
    image, side = image.copy(), v * image.width
    if side > 0:
        left, top = int(max(0, x - side / 2)), int(max(0, y - side / 2))
        box = (left, top, min(image.width, left + side), min(image.height, top + side))
        fill = (125, 123, 114) if image.mode == "RGB" else 123
        ImageDraw.Draw(image).rectangle(box, fill)
    return image


def to_pillow(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array if len(image) == 3 else array[:, :, 0])


def from_pillow(images: list[Image.Image]) -> Tensor:
    stack = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stack[:, None] if stack.ndim == 3 else stack.permute(0, 3, 1, 2)


def sample(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return noise, smooth ramps, narrow ranges and flat images: what the tables depend on."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (count, channels, height, width), generator=g)
    slope = torch.rand(count, channels, 1, 1, generator=g) * 255 / max(height, width)
    ramp = (slope * (torch.arange(height)[:, None] + torch.arange(width)) / 2).long()
    narrow = 90 + noise % torch.randint(1, 40, (count, 1, 1, 1), generator=g)
    kind = torch.arange(count)[:, None, None, None] % 4
    return torch.where(kind == 0, ramp, torch.where(kind == 1, narrow, noise)).to(torch.uint8)


def magnitudes(name: str, count: int, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return OPERATIONS[name].magnitude(torch.rand(count, dtype=torch.float64, generator=g))


def pillow(images: Tensor, name: str, values: Tensor) -> Tensor:
    rows = zip(images, values.tolist(), strict=True)
    return from_pillow([REFERENCE[name](to_pillow(image), value) for image, value in rows])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", REFERENCE)
def test_equals_pillow(name: str, size: tuple[int, int], channels: int) -> None:
    images, values = sample(COUNT[size], channels, *size), magnitudes(name, COUNT[size])
    assert (apply_operation(images, name, values) != pillow(images, name, values)).sum() == 0


@pytest.mark.parametrize("name", REFERENCE)
def test_equals_pillow_on_a_large_image(name: str) -> None:
    images, values = sample(4, 3, 224, 224), magnitudes(name, 4)
    assert torch.equal(apply_operation(images, name, values), pillow(images, name, values))


BEYOND = [
    ("ShearX", (-5.0, 0.99, 900.0)),
    ("ShearY", (-5.0, 0.99, 900.0)),
    ("TranslateX", (-1.0, 0.7, 1000.0)),
    ("TranslateY", (-1.0, 0.7, 1000.0)),
    ("Rotate", (90.0, 180.0, -270.0, 135.0, -725.0)),
    ("Solarize", (-3.0, 300.0, 17.5)),
    ("Posterize", (1.0, 2.5, 3.9)),
    ("Contrast", (-1.0, 0.0, 30.0)),
    ("Color", (-1.0, 0.0, 30.0)),
    ("Brightness", (-1.0, 0.0, 30.0)),
    ("Sharpness", (-1.0, 0.0, 30.0)),
]


@pytest.mark.parametrize(("name", "values"), BEYOND, ids=lambda value: str(value))
def test_equals_pillow_beyond_the_table_s_range(name: str, values: tuple[float, ...]) -> None:
    magnitude = torch.tensor(values, dtype=torch.float64)
    images = sample(len(values), 3, 20, 20)
    assert torch.equal(apply_operation(images, name, magnitude), pillow(images, name, magnitude))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_cutout_equals_pillow_s_rectangle(channels: int, height: int, width: int) -> None:
    images = sample(256, channels, height, width)
    values = magnitudes("Cutout", 256) * 3  # far beyond the table, so that borders cut
    values[0] = 0
    g = torch.Generator().manual_seed(5)
    size = torch.tensor([width, height])
    centre = torch.rand(256, 2, dtype=torch.float64, generator=g) * size
    out = apply_operation(images, "Cutout", values, centre=centre)
    rows = zip(images, values.tolist(), centre.tolist(), strict=True)
    assert torch.equal(out, from_pillow([cutout(to_pillow(i), v, *at) for i, v, at in rows]))


def test_cutout_draws_its_centres_from_the_generator() -> None:
    images = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)

    def drawn(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return apply_operation(images, "Cutout", 0.2, generator=g)

    centre = torch.rand(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 16
    assert torch.equal(drawn(3), apply_operation(images, "Cutout", 0.2, centre=centre))
    assert not torch.equal(drawn(3), drawn(4))
    assert len(drawn(3).flatten(1).unique(dim=0)) > 10


def test_the_table_is_the_paper_s() -> None:
    assert (*REFERENCE, "Cutout") == NAMES
    assert [name for name in NAMES if OPERATIONS[name].mirrored] == list(NAMES[:5])
    half = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    expected = {
        "ShearX": [-0.3, 0.0, 0.3],
        "TranslateY": [-0.45, 0.0, 0.45],
        "Rotate": [-30.0, 0.0, 30.0],
        "Invert": [0.0, 0.0, 0.0],
        "Solarize": [0.0, 128.0, 256.0],
        "Posterize": [4.0, 6.0, 8.0],
        "Color": [0.1, 1.0, 1.9],
        "Cutout": [0.0, 0.1, 0.2],
    }
    for name, values in expected.items():
        torch.testing.assert_close(OPERATIONS[name].magnitude(half).tolist(), values)


NEUTRAL = dict.fromkeys((*NAMES[:5], "Contrast", "Color", "Brightness", "Sharpness"), 0.5)
NEUTRAL |= {"Solarize": 1.0, "Posterize": 1.0, "Cutout": 0.0}


@pytest.mark.parametrize(("name", "level"), NEUTRAL.items())
def test_the_neutral_level_is_the_identity(name: str, level: float) -> None:
    images = sample(8, 3, 17, 12)
    magnitude = OPERATIONS[name].magnitude(torch.full((8,), level, dtype=torch.float64))
    assert torch.equal(apply_operation(images, name, magnitude), images)


def test_invert_twice_is_the_identity_and_posterize_to_no_bits_is_black() -> None:
    images = sample(8, 3, 17, 12)
    assert torch.equal(apply_operation(apply_operation(images, "Invert", 0), "Invert", 0), images)
    assert apply_operation(images, "Posterize", 0.0).sum() == 0


CENTRES = torch.rand(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) * 30


@pytest.mark.parametrize("name", NAMES)
def test_a_row_depends_on_nothing_but_itself(name: str) -> None:
    images, values = sample(400, 3, 30, 30), magnitudes(name, 400)  # more than one cached piece
    whole = apply_operation(images, name, values, centre=CENTRES)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    shuffled = apply_operation(images[order], name, values[order], centre=CENTRES[order])
    assert torch.equal(shuffled, whole[order])
    for row in (0, 199, 399):
        one = slice(row, row + 1)
        alone = apply_operation(images[one], name, values[one], centre=CENTRES[one])
        assert torch.equal(alone, whole[one])


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_does_not_matter_and_the_input_is_left_alone(name: str) -> None:
    images, values, centre = sample(8, 3, 12, 15), magnitudes(name, 8), CENTRES[:8] / 3
    strided = images.to(memory_format=torch.channels_last)
    out = apply_operation(strided, name, values, centre=centre)
    assert torch.equal(out, apply_operation(images, name, values, centre=centre))
    assert torch.equal(strided, sample(8, 3, 12, 15))
    assert out.dtype == torch.uint8
    assert out.data_ptr() != strided.data_ptr()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_stays_empty(name: str, channels: int) -> None:
    empty = torch.zeros(0, channels, 8, 9, dtype=torch.uint8)
    assert apply_operation(empty, name, torch.zeros(0)).shape == (0, channels, 8, 9)


def test_one_number_stands_for_all_rows() -> None:
    images = sample(8, 3, 12, 12)
    rows = apply_operation(images, "Rotate", torch.full((8,), 20.0, dtype=torch.float64))
    assert torch.equal(apply_operation(images, "Rotate", 20), rows)
    assert torch.equal(apply_operation(images, "Rotate", torch.tensor(20.0)), rows)


def test_operations_without_magnitude_ignore_it() -> None:
    images = sample(8, 3, 12, 12)
    nonsense = torch.full((3,), torch.nan)
    for name in ("AutoContrast", "Invert", "Equalize"):
        expected = apply_operation(images, name, 0.0)
        assert torch.equal(apply_operation(images, name, nonsense), expected)


IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
WRONG_IMAGES = [
    (IMAGES.float(), TypeError, r"images: dtype torch.float32; must be torch.uint8"),
    (IMAGES[0], ValueError, r"images: shape \(3, 4, 4\); .*images\[None\]"),
    (IMAGES[:, :2], ValueError, r"images: shape \(2, 2, 4, 4\); must be \(N, 1, H, W\)"),
    (IMAGES[:, :, :0], ValueError, r"images: shape \(2, 3, 0, 4\); .*H and W from 1 to 8192"),
    (IMAGES[:, :, :, :1].expand(2, 3, 4, 8193), ValueError, r"W from 1 to 8192"),
]


@pytest.mark.parametrize(("images", "error", "message"), WRONG_IMAGES)
def test_images_that_fit_no_operation_are_refused(
    images: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        apply_operation(images, "Invert", 0.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rotate", r"name: 'rotate' is no operation \(did you mean 'Rotate'\?\); choose from Shea"),
        ("Colour", r"did you mean 'Color'\?"),
        ("Blur7x7", r"name: 'Blur7x7' is no operation; choose from"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_operation(IMAGES, name, 0.0)


@pytest.mark.parametrize(
    ("name", "magnitude", "message"),
    [
        ("Rotate", torch.zeros(3), r"magnitude: shape \(3,\) for 2 images; .* \(2,\)"),
        ("Rotate", torch.zeros(2, 1), r"magnitude: shape \(2, 1\) for 2 images"),
        ("Color", torch.tensor([1.0, torch.nan]), r"magnitude: nan for Color; must lie in \["),
        ("ShearX", float("inf"), r"magnitude: inf for ShearX"),
        ("Posterize", torch.tensor([8.0, 8.5]), r"8.5 for Posterize; must lie in \[0, 8\]; lev"),
        ("Posterize", -1, r"levels 0 to 1 stand for 4 to 8"),
    ],
)
def test_a_magnitude_without_meaning_is_refused(
    name: str, magnitude: Tensor | float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        apply_operation(IMAGES, name, magnitude)


@pytest.mark.parametrize(
    "centre", [torch.zeros(2), torch.zeros(3, 2), torch.tensor([[0, torch.nan]] * 2)]
)
def test_centres_of_the_wrong_shape_are_refused(centre: Tensor) -> None:
    with pytest.raises(ValueError, match=r"centre: .* must be \(2, 2\) finite numbers, x and y"):
        apply_operation(IMAGES, "Cutout", 0.1, centre=centre)
