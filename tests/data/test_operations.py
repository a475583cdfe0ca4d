"""Every operation against Pillow, one image at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from raykb.data.operations import OPERATIONS, apply_operation

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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", REFERENCE)
def test_equals_pillow(name: str, size: tuple[int, int], channels: int) -> None:
    images = sample(COUNT[size], channels, *size)
    values = magnitudes(name, len(images))
    out = apply_operation(images, name, values)
    expected = [
        REFERENCE[name](to_pillow(i), v) for i, v in zip(images, values.tolist(), strict=True)
    ]
    assert (out != from_pillow(expected)).sum() == 0
