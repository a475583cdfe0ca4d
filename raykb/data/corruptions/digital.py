"""What cameras and files do to images; these are (N, C, H, W) float32 in [0, 1]."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from raykb.data.corruptions.draws import Draws
from raykb.data.corruptions.lines import along_axes, blurring, boxes
from raykb.data.corruptions.values import to_bytes


def brightness(images: Tensor, _: Draws, more: float) -> Tensor:
    """Return images with ``more`` added to the value of HSV: hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    brighter = (value + more).clamp_(max=1)
    return torch.where(value > 0, images * (brighter / value), brighter)


def contrast(images: Tensor, _: Draws, factor: float) -> Tensor:
    """Return ``(x - mean) * factor + mean`` with the mean of each channel of each image."""
    return torch.lerp(images.mean((2, 3), keepdim=True), images, factor)


def saturate(images: Tensor, _: Draws, factor: float, more: float) -> Tensor:
    """Return images with ``S * factor + more`` for the saturation of HSV; grey has the hue of red.

    Images of one channel have no colour, and stay.
    """
    if images.shape[1] == 1:
        return images
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - least
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device)[:, None, None]
    share = torch.where(chroma > 0, (value - images) / chroma, red)  # of the chroma, that is off
    saturation = torch.where(value > 0, chroma / value, 0.0)
    return value - value * (saturation * factor + more).clamp_(0, 1) * share


def elastic_transform(
    images: Tensor, draws: Draws, reach: float, sigma: float, shift: float
) -> Tensor:
    """Return images that are sheared, and then pulled by a smooth field.

    Args:
        images: (N, C, H, W); outside are their mirror images.
        draws: of the three points that say how they are sheared, and of the field.
        reach: how far pixels are pulled, for a field in [-1, 1]; in pixels.
        sigma: of the Gaussian that makes the field smooth, in pixels.
        shift: how far each of the three points moves along an axis at most, in pixels.
    """
    height, width = images.shape[2:]
    y, x = (torch.arange(side, device=images.device) for side in (height, width))
    y, x = torch.meshgrid(y, x, indexing="ij")
    linear = affine(draws, height, width, shift)[:, :, None, None]  # (N, 2, 1, 1, 3)
    sheared = linear[..., 0] * x + linear[..., 1] * y + linear[..., 2]  # (N, 2, H, W): x, y
    # mirror images come again and again: folded as float64, what is far away keeps its digits
    period = 2 * torch.tensor([width, height], device=images.device).sub_(1).clamp_(min=1)
    period = period[:, None, None]
    sheared = sheared - (sheared / period).floor_().mul_(period)
    images = read_at(images, sheared.float(), "mirror")
    field = draws.uniform("field", 2, height, width, low=-1.0, high=1.0)
    smooth = (blurring(side, sigma, cut=3.0, border="symmetric") for side in (height, width))
    pulled = torch.stack([x, y]) + reach * along_axes(field, *smooth)
    return read_at(images, pulled, "symmetric")


def affine(draws: Draws, height: int, width: int, shift: float) -> Tensor:
    """Return matrices (N, 2, 3) float64 that say where a pixel (x, y, 1) is read.

    They take three points about the middle that have moved back to where they were.
    """
    side = min(height, width) // 3
    middle = torch.tensor([width // 2, height // 2, 1], dtype=torch.float64)[:, None]
    ways = torch.tensor([[1, 1, -1], [1, -1, -1], [0, 0, 0]], dtype=torch.float64)
    points = (middle + side * ways).to(draws.device)  # (3, 3): a point in each column
    moved = points + F.pad(draws.uniform("points", 2, 3, low=-shift, high=shift), (0, 0, 0, 1))
    back, _ = torch.linalg.inv_ex(moved)  # unlike inv it does not wait for the device
    matrices: Tensor = points[:2] @ back
    return matrices


def read_at(images: Tensor, places: Tensor, border: str) -> Tensor:
    """Return what images show at ``places`` (N, 2, H, W), x and y in pixels; linear between them.

    Outside are mirror images, at the border's pixels (``mirror``) or at their rims (``symmetric``).
    """
    rim = 0 if border == "mirror" else 1  # of half a pixel at both ends
    spans = torch.tensor(images.shape[:1:-1], device=images.device).sub_(1 - rim).clamp_(min=1)
    grid = (2 * places.movedim(1, 3) + rim) / spans - 1  # (N, H, W, 2)
    found: Tensor = F.grid_sample(images, grid, padding_mode="reflection", align_corners=rim == 0)
    return found


def pixelate(images: Tensor, _: Draws, scale: float) -> Tensor:
    """Return images made smaller by means over boxes, and as large again."""
    sides = images.shape[2:]
    small = [max(1, int(side * scale)) for side in sides]
    pixels = to_bytes(images).float()
    for wanted in (small, sides):
        for axis in (3, 2):  # columns first, and whole values after each axis, as in Pillow
            matrices = [boxes(side, side) for side in pixels.shape[2:]]
            matrices[axis - 2] = boxes(pixels.shape[axis], wanted[axis - 2])
            pixels = along_axes(pixels, *matrices).add_(0.5).floor_()
    return pixels / 255


def jpeg_compression(images: Tensor, _: Draws, quality: int) -> Tensor:
    """Return images that were written as JPEG files of a quality from 1 to 100, and read again.

    An image at a time and on the CPU, as files are.
    """
    pixels = to_bytes(images).cpu().movedim(1, 3).numpy()  # (N, H, W, C)
    read = [_through_a_file(image, quality) for image in pixels]
    return torch.from_numpy(np.stack(read)).view(pixels.shape).movedim(3, 1).to(images) / 255


def _through_a_file(image: np.ndarray, quality: int) -> np.ndarray:
    """Return what is read of a JPEG file of an image (H, W, C), (H, W) if it has one channel."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
        file, "JPEG", quality=quality
    )
    with Image.open(file) as picture:
        return np.array(picture)
