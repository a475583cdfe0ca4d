"""Transformations that a test image may be given before it is classified, by the batch.

Kim, Kim, Kim, "Learning Loss for Test-Time Augmentation", NeurIPS 2020, arXiv 2010.11422: twelve
candidates, in the order of the official code.

    n             the image as it is
    r-20, r20     rotated by degrees, counter-clockwise       what lies outside is mirrored
    z0.8, z1.2    zoomed by a factor
    c             autocontrast
    s0.2 … s4     sharpness by a factor
    l0.5, l2.0    saturation by a factor; the identity on grey images

Departures: the source pads by mirrors to three times the side, turns, and crops; here a position is
read at its mirror, by bilinear interpolation once, which is the same picture without the canvas.
The views of others that cost as many passes (:data:`FLIP`, :data:`CROPS`) are not candidates.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.data.operations import apply_operation

_CROP = 0.875  # share of the side that a crop keeps, as 224 of 256


def turned(images: Tensor, *, degrees: float = 0.0, zoom: float = 1.0) -> Tensor:
    """Return images rotated counter-clockwise and magnified about their middle.

    Args:
        images: (N, C, H, W) uint8.
        degrees: of the rotation.
        zoom: above 1 shows less of the image, below 1 more, which is its mirror.
    """
    height, width = images.shape[2:]
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    # grid_sample counts either axis from -1 to 1, whatever its pixels
    matrix = [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]
    theta = torch.tensor(matrix, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    read = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return read.round_().clamp_(0, 255).to(torch.uint8)


def mirrored(images: Tensor) -> Tensor:
    """Return images (…, H, W) with left and right exchanged."""
    return images.flip(-1)


def cropped(images: Tensor, *, top: float, left: float) -> Tensor:
    """Return a crop of 7/8 of the side, as large as the image was.

    Args:
        images: (N, C, H, W) uint8.
        top: of what is cut off, the share above.
        left: likewise at the left.
    """
    height, width = images.shape[2:]
    rows, columns = round(_CROP * height), round(_CROP * width)
    y, x = round(top * (height - rows)), round(left * (width - columns))
    part = images[..., y : y + rows, x : x + columns].float()
    large = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
    return large.round_().to(torch.uint8)


def _operation(name: str, factor: float) -> Callable[[Tensor], Tensor]:
    return functools.partial(apply_operation, name=name, magnitude=factor)


def _saturation(factor: float) -> Callable[[Tensor], Tensor]:
    """Return the change of saturation, which a grey image has none of."""
    change = _operation("Color", factor)
    return lambda images: images if images.shape[1] == 1 else change(images)


CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "n": torch.Tensor.clone,
    "r-20": functools.partial(turned, degrees=-20.0),
    "r20": functools.partial(turned, degrees=20.0),
    "z0.8": functools.partial(turned, zoom=0.8),
    "z1.2": functools.partial(turned, zoom=1.2),
    "c": _operation("AutoContrast", 0.0),
    "s0.2": _operation("Sharpness", 0.2),
    "s0.5": _operation("Sharpness", 0.5),
    "s3": _operation("Sharpness", 3.0),
    "s4": _operation("Sharpness", 4.0),
    "l0.5": _saturation(0.5),
    "l2.0": _saturation(2.0),
}
"""What the predictor chooses among."""

FLIP: dict[str, Callable[[Tensor], Tensor]] = {"flip": mirrored}
CROPS: dict[str, Callable[[Tensor], Tensor]] = {
    f"crop_{top:g}_{left:g}": functools.partial(cropped, top=top, left=left)
    for top, left in ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
}


def views(images: Tensor, transformations: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Return every transformation of every image, (N, A, C, H, W) uint8.

    Args:
        images: (N, C, H, W) uint8.
        transformations: A of them, as rows of :data:`CANDIDATES`.
    """
    return torch.stack([each(images) for each in transformations], dim=1)
