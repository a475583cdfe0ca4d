"""The 15 image operations of Fast AutoAugment, each row of a batch with a magnitude of its own.

Lim, Kim, Kim, Kim, Kim, "Fast AutoAugment", NeurIPS 2019, arXiv 1905.00397. The operations are
AutoAugment's (Cubuk et al., CVPR 2019, arXiv 1805.09501), which are Pillow's: an image augmented
here is, pixel for pixel, the image that Pillow would have made one at a time.

    images     (N, C, H, W) uint8 on any device; C is 1 (grey, Pillow's mode L) or 3 (RGB)
    magnitude  (N,) float64, ``low + level * (high - low)`` with its sign already chosen

Departures: Posterize allows 0 bits (a black image), which newer versions of Pillow refuse.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_ONE = 1 << 16  # Pillow's geometry counts in 1/65536 of a pixel
_LUMA = (19595, 38470, 7471)  # weights of R, G, B in grey, in 1/65536
_SIDE = 8192  # pixels; fixed-point positions of larger images would not fit 32 bits
_FAR = 1 << 30  # farther outside any image than its own side, in 1/65536
_PIECE = 1 << 19  # bytes of image the CPU works on at a time, so that what a kernel makes is cached
_FILL = {1: (123,), 3: (125, 123, 114)}  # Cutout's colour by the number of channels


@dataclass(frozen=True)
class Operation:
    """One operation: its name, the range that levels 0 to 1 span, and the kernel that applies it.

    Attributes:
        name: AutoAugment's name of it.
        low: magnitude at level 0.
        high: magnitude at level 1; equal to ``low`` where the operation has no magnitude.
        mirrored: whether the magnitude's sign is flipped with probability 1/2 when it is applied.
        kernel: (images, magnitude on the CPU) -> images; Cutout's takes (N, 3): size, x, y.
        allowed: least and greatest magnitude that have a meaning, beyond what levels reach.
    """

    name: str
    low: float
    high: float
    mirrored: bool
    kernel: Callable[[Tensor, Tensor], Tensor]
    allowed: tuple[float, float] = (-1e6, 1e6)

    def magnitude(self, level: Tensor) -> Tensor:
        """Return the magnitude at ``level`` in [0, 1], of the same shape, before mirroring."""
        return self.low + level * (self.high - self.low)


# Geometry: nearest neighbour by Pillow's fixed-point arithmetic; outside the image lies black.


def _fixed(value: Tensor) -> Tensor:
    return (value * _ONE + 0.5).floor().long()


def _affine(images: Tensor, *matrix: Tensor | int) -> Tensor:
    """Read each pixel (X, Y) from x = a X + b Y + c, y = d X + e Y + f.

    Args:
        images: (N, C, H, W) uint8.
        matrix: a to f, each (N,) or one for all, in 1/65536; (c, f) is where (0, 0) reads.
    """
    _, channels, height, width = images.shape
    a, b, c, d, e, f = (torch.as_tensor(entry).view(-1, 1, 1) for entry in matrix)
    columns, rows = torch.arange(width), torch.arange(height)[:, None]

    def source(along: Tensor, start: Tensor, size: int) -> Tensor:
        # on the small tensors int64, beyond overflow; the clamp keeps what is outside outside
        along, start = (t.clamp(-_FAR, _FAR).to(images.device, torch.int32) for t in (along, start))
        return (along + start).bitwise_right_shift_(16).clamp_(0, size + 1)

    # a border of one black pixel is what every position outside the image reads
    x = source(a * columns, b * rows + c + _ONE, width)
    y = source(d * columns, e * rows + f + _ONE, height)
    index = torch.add(x, y, alpha=width + 2).long()  # (N, H, W)
    index = index.flatten(1)[:, None].expand(-1, channels, -1)
    return F.pad(images, (1, 1, 1, 1)).flatten(2).gather(2, index).view(images.shape)


def _shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    start = _fixed(0.5 + 0.5 * magnitude)
    return _affine(images, _ONE, _fixed(magnitude), start, 0, _ONE, _ONE // 2)


def _shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    start = _fixed(0.5 + 0.5 * magnitude)
    return _affine(images, _ONE, 0, _ONE // 2, _fixed(magnitude), _ONE, start)


def _translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    pixels = (magnitude * images.shape[3] + 0.5).floor().long()
    return _affine(images, _ONE, 0, pixels * _ONE, 0, _ONE, 0)


def _translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    pixels = (magnitude * images.shape[2] + 0.5).floor().long()
    return _affine(images, _ONE, 0, 0, 0, _ONE, pixels * _ONE)


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    angle = -torch.deg2rad(degrees.remainder(360.0))
    cos, sin = torch.cos(angle), torch.sin(angle)
    middle_x, middle_y = images.shape[3] / 2, images.shape[2] / 2  # stays where it is
    left, top = 0.5 - middle_x, 0.5 - middle_y  # the first pixel's centre, seen from there
    start_x = _fixed(middle_x + left * cos + top * sin)
    start_y = _fixed(middle_y - left * sin + top * cos)
    return _affine(images, _fixed(cos), _fixed(sin), start_x, _fixed(-sin), _fixed(cos), start_y)


# Tone: each value of a channel is replaced by another.


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    channels = images.flatten(2).flatten(0, 1)  # (N * C, H * W)
    low = channels.amin(1, keepdim=True).double()
    high = channels.amax(1, keepdim=True).double()
    flat = high <= low  # stays as it is
    # a tensor as numerator: "255.0 / tensor" multiplies by the reciprocal and rounds otherwise
    scale = torch.full_like(low, 255.0) / (high - low).masked_fill(flat, 255.0)
    offset = (-low * scale).masked_fill(flat, 0.0)
    values = torch.arange(256, dtype=torch.float64, device=images.device)
    table = (values * scale).add_(offset).clamp_(0, 255).to(torch.uint8)  # (N * C, 256)
    return table.gather(1, channels.long()).view(images.shape)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    channels = images.flatten(2).flatten(0, 1)  # (N * C, H * W)
    brightest = channels.amax(1, keepdim=True).long()
    levels = channels.long()
    histogram = torch.zeros(len(levels), 256, dtype=torch.int32, device=images.device)
    one = torch.ones((), dtype=torch.int32, device=images.device)
    histogram.scatter_add_(1, levels, one.expand_as(levels))
    step = (channels.shape[1] - histogram.gather(1, brightest)) // 255  # (N * C, 1)
    below = histogram.cumsum(1, dtype=torch.int32).sub_(histogram)
    # whole numbers below 2^53 divide exactly enough in float64, and faster than as integers
    table = below.add_(step // 2).double().div_(step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    values = torch.arange(256, dtype=torch.uint8, device=images.device)
    table = torch.where(step == 0, values, table)  # (N * C, 256)
    return table.gather(1, levels).view(images.shape)


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return images ^ 255


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    # x < v is x < ceil(v) for whole x; the maximum is vectorised where a broadcast >= is not
    start = threshold.ceil().clamp(0, 256).to(images.device, torch.int16)[:, None, None, None]
    wide = images.to(torch.int16)
    above = torch.maximum(wide, start) == wide
    return above.to(torch.uint8).mul_(255).bitwise_xor_(images)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    mask = 256 - (1 << (8 - bits.long()))  # the highest places of a byte
    return images & mask.to(images.device, torch.uint8)[:, None, None, None]


# Blends: images are mixed with, or pushed away from, a degenerate version of themselves.


def _byte(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)  # both steps are vectorised


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Return ``degenerate + factor * (images - degenerate)`` in float32, cut to a byte."""
    factor = factor.to(images.device, torch.float32)[:, None, None, None]
    change = images.float().sub_(degenerate).mul_(factor)
    return _byte(change.add_(degenerate))  # not fused with the product: Pillow rounds twice


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().unbind(1)
    luma = red.mul(_LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return luma.add_(_ONE // 2).bitwise_right_shift_(16)[:, None]  # (N, 1, H, W)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(images).flatten(1).sum(1).double() / images.shape[2:].numel()
    return _blend((mean + 0.5).floor().float()[:, None, None, None], images, factor)


def _color(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(images).float(), images, factor)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _byte(images.float().mul_(factor.to(images.device, torch.float32)[:, None, None, None]))


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    wide = images.to(torch.int16)
    # neighbours by rolling all pixels as one line: wrong only in the border, restored below
    rows = wide.roll(images.shape[3]).add_(wide.roll(-images.shape[3])).add_(wide)
    box = rows.roll(1).add_(rows.roll(-1)).add_(rows).add_(wide, alpha=4)
    # no thirteenth lies within rounding error of a half
    smooth = box.float().add_(6.5).mul_(1 / 13).floor_()
    out = _blend(smooth, images, factor)
    for edge in (0, -1):
        out[..., edge] = images[..., edge]
        out[..., edge, :] = images[..., edge, :]
    return out


def _cutout(images: Tensor, box: Tensor) -> Tensor:
    _, channels, height, width = images.shape
    side, x, y = box[:, :1] * width, box[:, 1:2], box[:, 2:]  # (N, 1)

    def covered(middle: Tensor, size: int) -> Tensor:
        """Return 255 at the positions within the box, both of its ends included, else 0."""
        first = (middle - side / 2).clamp(min=0).trunc()
        last = (first + side).clamp(max=size).trunc()
        position = torch.arange(size)
        inside = (position >= first) & (position <= last) & (side > 0)
        return inside.to(images.device, torch.uint8) * 255  # (N, size)

    hole = covered(y, height)[:, None, :, None] & covered(x, width)[:, None, None, :]
    fill = torch.tensor(_FILL[channels], dtype=torch.uint8, device=images.device)[:, None, None]
    return (images ^ fill).bitwise_and_(hole).bitwise_xor_(images)  # a select, bit by bit


_TABLE = (
    Operation("ShearX", -0.3, 0.3, True, _shear_x),
    Operation("ShearY", -0.3, 0.3, True, _shear_y),
    Operation("TranslateX", -0.45, 0.45, True, _translate_x),
    Operation("TranslateY", -0.45, 0.45, True, _translate_y),
    Operation("Rotate", -30.0, 30.0, True, _rotate),
    Operation("AutoContrast", 0.0, 0.0, False, _auto_contrast),
    Operation("Invert", 0.0, 0.0, False, _invert),
    Operation("Equalize", 0.0, 0.0, False, _equalize),
    Operation("Solarize", 0.0, 256.0, False, _solarize),
    Operation("Posterize", 4.0, 8.0, False, _posterize, allowed=(0.0, 8.0)),
    Operation("Contrast", 0.1, 1.9, False, _contrast),
    Operation("Color", 0.1, 1.9, False, _color),
    Operation("Brightness", 0.1, 1.9, False, _brightness),
    Operation("Sharpness", 0.1, 1.9, False, _sharpness),
    Operation("Cutout", 0.0, 0.2, False, _cutout),
)
OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _TABLE}
NAMES: tuple[str, ...] = tuple(OPERATIONS)


def _find(name: str) -> Operation:
    if name in OPERATIONS:
        return OPERATIONS[name]
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in NAMES], n=1)
    hint = "".join(f" (did you mean {known!r}?)" for known in NAMES if known.lower() in near)
    raise ValueError(f"name: {name!r} is no operation{hint}; choose from {', '.join(NAMES)}")


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images: dtype {images.dtype}; must be torch.uint8 (operations come before the view "
            "that normalises)"
        )
    sides_fit = all(1 <= side <= _SIDE for side in images.shape[2:])
    if images.ndim != 4 or images.shape[1] not in _FILL or not sides_fit:
        raise ValueError(
            f"images: shape {tuple(images.shape)}; must be (N, 1, H, W) or (N, 3, H, W) with H and "
            f"W from 1 to {_SIDE}; give a single image its batch axis with images[None]"
        )


def _check_magnitude(magnitude: Tensor | float, operation: Operation, count: int) -> Tensor:
    """Return the magnitudes as (N,) float64 on the CPU."""
    value = torch.as_tensor(magnitude, dtype=torch.float64, device="cpu")
    if operation.low == operation.high:
        return torch.zeros(count, dtype=torch.float64)
    if value.shape not in ((), (count,)):
        raise ValueError(
            f"magnitude: shape {tuple(value.shape)} for {count} images; must be a number or "
            f"({count},), one for each image"
        )
    low, high = operation.allowed
    wrong = ~((value >= low) & (value <= high))  # true of NaN as well
    if wrong.any():
        raise ValueError(
            f"magnitude: {value[wrong][0].item():g} for {operation.name}; must lie in "
            f"[{low:g}, {high:g}]; levels 0 to 1 stand for {operation.low:g} to {operation.high:g}"
        )
    return value.expand(count)


def _check_centre(
    centre: Tensor | None, images: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Return Cutout's centres as (N, 2) float64 on the CPU, drawn where none are given."""
    count, _, height, width = images.shape
    if centre is None:
        size = torch.tensor([width, height], dtype=torch.float64)
        return torch.rand(count, 2, dtype=torch.float64, generator=generator) * size
    if centre.shape != (count, 2) or not centre.isfinite().all():
        raise ValueError(
            f"centre: shape {tuple(centre.shape)} for {count} images; must be ({count}, 2) finite "
            "numbers, x and y in pixels; leave it out to have it drawn from generator"
        )
    return centre.to("cpu", torch.float64)


def rows_at_a_time(images: Tensor) -> int:
    """Return how many rows of a batch to work on at once, so that on the CPU they stay cached."""
    if images.device.type != "cpu":
        return max(1, len(images))
    return max(1, _PIECE // max(1, images.shape[1:].numel()))


def apply_operation(
    images: Tensor,
    name: str,
    magnitude: Tensor | float,
    *,
    centre: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Apply one operation to a batch, row by row as Pillow would.

    Args:
        images: (N, C, H, W) uint8, C = 1 or 3; left as they are.
        name: one of :data:`NAMES`.
        magnitude: (N,) float64 or one number for all; factors beyond the table's range are fine.
            Ignored by AutoContrast, Invert and Equalize. On the CPU it costs no wait for the
            device of the images.
        centre: (N, 2) float64, x and y in pixels of Cutout's centres; other operations ignore it.
        generator: CPU generator that Cutout draws its centres from where ``centre`` is None;
            torch's global one by default.

    Returns:
        (N, C, H, W) uint8 on the device of ``images``.

    Raises:
        TypeError: ``images`` are not uint8.
        ValueError: an unknown name, a wrong shape, or a magnitude without a meaning.
    """
    operation = _find(name)
    _check_images(images)
    parameters = _check_magnitude(magnitude, operation, len(images))
    if name == "Cutout":
        parameters = torch.column_stack([parameters, _check_centre(centre, images, generator)])
    rows, out = rows_at_a_time(images), torch.empty_like(images)
    pieces = zip(out.split(rows), images.split(rows), parameters.split(rows), strict=True)
    for target, piece, strength in pieces:
        target.copy_(operation.kernel(piece, strength))
    return out
