"""Training and test views: from uint8 images to what a network takes, a batch at a time.

A view draws nothing itself. It is handed ``draws`` uniform numbers for each image, so what an image
becomes depends on those numbers alone, not on the batch, worker or device it meets them on.

Source of both views: Lim, Kim, Kim, Kim, Kim, "Fast AutoAugment", NeurIPS 2019, arXiv 1905.00397,
and its official settings for CIFAR, SVHN and ImageNet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.data.operations import rows_at_a_time
from raykb.engine.arguments import at_least, check_settings

# Principal components of ImageNet's RGB values (Krizhevsky, Sutskever, Hinton, NeurIPS 2012, in
# the published figures that every later recipe uses), for values in [0, 1].
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),  # red
    (-0.5808, -0.0045, -0.8140),  # green
    (-0.5836, -0.6948, 0.4203),  # blue
)
_LUMA = (0.299, 0.587, 0.114)


class ImageView(Protocol):
    """Turns uint8 images into normalised ones; all chance comes in as uniform numbers."""

    @property
    def draws(self) -> int:
        """Uniform numbers needed for each image."""

    @property
    def mean(self) -> Sequence[float]:
        """Of the channels, for values in [0, 1]; one number each, or one for all."""

    @property
    def std(self) -> Sequence[float]:
        """The same for the standard deviation."""

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return the training view, (N, C, H', W') float32, given (N, draws) float64 in [0, 1)."""

    def plain(self, images: Tensor) -> Tensor:
        """Return the test view, (N, C, H', W') float32."""


@dataclass(frozen=True, kw_only=True)
class CropFlipView:
    """Random crop of the zero-padded image, flip, normalisation, Cutout: the view of small images.

    Cutout (DeVries, Taylor, arXiv 1708.04552) sets a square to zero *after* normalisation, that is
    to the mean colour; its centre is any pixel, and the border cuts off what lies outside.

    Attributes:
        mean: of the channels, for values in [0, 1]; one number each, or one for all. Values are in
            [-1, 1] by default.
        std: the same for the standard deviation.
        padding: pixels of black on each side before the crop; 0 for no crop.
        flip: whether half of the images are mirrored left to right.
        cutout: side of the square in pixels, rounded down to even as in the source; 0 for none.
    """

    mean: Sequence[float] = (0.5,)
    std: Sequence[float] = (0.5,)
    padding: int = 4
    flip: bool = True
    cutout: int = 0

    draws: ClassVar[int] = 5  # crop y, crop x, flip, cutout y, cutout x

    def __post_init__(self) -> None:
        _check_statistics(self.mean, self.std)
        check_settings(self, padding=at_least(0), cutout=at_least(0))

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return (N, C, H, W) float32 for (N, C, H, W) uint8 and (N, 5) uniform numbers."""
        _check_images(images, self.mean, self.std)
        _check_uniforms(uniforms, images, self.draws)
        rows, out = rows_at_a_time(images), torch.empty_like(images, dtype=torch.float32)
        pieces = zip(out.split(rows), images.split(rows), uniforms.split(rows), strict=True)
        for target, piece, numbers in pieces:
            target.copy_(self._view(piece, numbers))
        return out

    def plain(self, images: Tensor) -> Tensor:
        """Return the images normalised, without crop, flip or Cutout."""
        _check_images(images, self.mean, self.std)
        return normalise(images.float().div_(255), self.mean, self.std)

    def _view(self, images: Tensor, uniforms: Tensor) -> Tensor:
        height, width = images.shape[2:]
        crop_y, crop_x, flip, hole_y, hole_x = uniforms.cpu()[:, :, None].unbind(1)  # (N, 1)
        y = _whole(crop_y, 2 * self.padding + 1) + torch.arange(height)  # (N, H)
        x = torch.arange(width).expand(len(images), -1)
        if self.flip:
            x = torch.where(flip < 0.5, x.flip(1), x)
        x = _whole(crop_x, 2 * self.padding + 1) + x  # (N, W)
        out = normalise(_gather(images, y, x, self.padding).float().div_(255), self.mean, self.std)
        if self.cutout:
            inside_y = _near(_whole(hole_y, height), self.cutout // 2, height)
            inside_x = _near(_whole(hole_x, width), self.cutout // 2, width)
            hole = (inside_y[:, None, :, None] & inside_x[:, None, None, :]).to(images.device)
            out.mul_(1 - hole.float())
        return out


@dataclass(frozen=True, kw_only=True)
class ResizedCropView:
    """Random crop resized to one size, flip, colour jitter, lighting: the view of ImageNet.

    Departures from the source. The crop's ratio is clamped to what its area lets fit into the image
    where the source draws again, so the area is always the one drawn; the source also asks a crop
    to cover a tenth of the object, which for whole images only bounds the area. Bicubic sampling
    is not antialiased and reads across the crop's edge. Brightness, contrast and saturation
    come in this order where the source shuffles them.

    Attributes:
        mean: of the channels, for values in [0, 1]; one number each, or one for all. ImageNet's by
            default.
        std: the same for the standard deviation.
        size: side of the view in pixels.
        scale: least and greatest share of the image's area in the crop.
        ratio: least and greatest width / height of the crop, log-uniform.
        flip: whether half of the images are mirrored left to right.
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.
        lighting: standard deviation of the noise along the principal components of colour.
    """

    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    jitter: float = 0.4
    lighting: float = 0.1

    draws: ClassVar[int] = 11  # area, ratio, y, x, flip, three factors, three of lighting

    def __post_init__(self) -> None:
        _check_statistics(self.mean, self.std)
        if self.size < 1:
            raise ValueError(f"size: {self.size}; must be at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: {self.scale}; must be (least, greatest) share in (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: {self.ratio}; must be (least, greatest) above 0")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter: {self.jitter}; must lie in [0, 1]; 0 is none")
        if self.lighting < 0:
            raise ValueError(f"lighting: {self.lighting}; must be 0 (for none) or more")

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return (N, C, size, size) float32 for (N, C, H, W) uint8 and (N, 11) uniform numbers."""
        _check_images(images, self.mean, self.std)
        _check_uniforms(uniforms, images, self.draws)
        if self.lighting and images.shape[1] != 3:
            raise ValueError(
                f"images: {images.shape[1]} channel(s) with lighting {self.lighting}; its noise is "
                "known for RGB only; set lighting to 0"
            )
        uniforms = uniforms.cpu()
        out = self._crop(images, uniforms[:, :5])
        out = self._jitter(out, (1 - self.jitter + 2 * self.jitter * uniforms[:, 5:8]).float())
        if self.lighting:
            normal = torch.special.ndtri(uniforms[:, 8:].clamp(min=2.0**-54))  # (N, 3)
            strength = normal * self.lighting * torch.tensor(_EIGENVALUES, dtype=torch.float64)
            noise = strength @ torch.tensor(_EIGENVECTORS, dtype=torch.float64).T  # (N, RGB)
            out.add_(noise.to(out)[:, :, None, None])
        return normalise(out, self.mean, self.std)

    def plain(self, images: Tensor) -> Tensor:
        """Return the centre ``size`` x ``size`` of images whose short side is ``size + 32``."""
        _check_images(images, self.mean, self.std)
        short = min(images.shape[2:])
        height, width = (round(side * (self.size + 32) / short) for side in images.shape[2:])
        resized = F.interpolate(
            images.float(), (height, width), mode="bicubic", antialias=True, align_corners=False
        )
        top, left = (height - self.size) // 2, (width - self.size) // 2
        centre = resized[:, :, top : top + self.size, left : left + self.size]
        return normalise(centre.div(255).clamp_(0, 1), self.mean, self.std)

    def boxes(self, uniforms: Tensor, height: int, width: int) -> Tensor:
        """Return the crops' (top, left, height, width), (N, 4) float64 whole numbers of pixels."""
        return crop_boxes(uniforms[:, :4], height, width, self.scale, self.ratio)

    def _crop(self, images: Tensor, uniforms: Tensor) -> Tensor:
        height, width = images.shape[2:]
        top, left, tall, wide = self.boxes(uniforms, height, width).unbind(1)
        mirror = torch.where(uniforms[:, 4] < 0.5, -1.0, 1.0) if self.flip else 1.0
        centre = (torch.arange(self.size, dtype=torch.float64) * 2 + 1) / self.size - 1  # of pixels

        def positions(start: Tensor, length: Tensor, side: int, sign: Tensor | float) -> Tensor:
            """Return where each pixel of the view reads (N, size), the image spanning -1 to 1."""
            share = (length / side * sign)[:, None]
            return (share * centre + ((2 * start + length) / side - 1)[:, None]).float()

        x = positions(left, wide, width, mirror)[:, None, :].expand(-1, self.size, -1)
        y = positions(top, tall, height, 1.0)[:, :, None].expand(-1, -1, self.size)
        grid = torch.stack([x, y], dim=3).to(images.device)  # (N, size, size, 2)
        out = F.grid_sample(
            images.float().div_(255),
            grid,
            mode="bicubic",
            padding_mode="border",
            align_corners=False,
        )
        return out.clamp_(0, 1)  # bicubic overshoots

    def _jitter(self, images: Tensor, factors: Tensor) -> Tensor:
        if not self.jitter:
            return images
        factors = factors.to(images.device)[:, :, None, None, None]  # (N, 3, 1, 1, 1)
        brightness, contrast, saturation = factors.unbind(1)
        images = (images * brightness).clamp_(0, 1)
        mean = _grey(images).mean((2, 3), keepdim=True)
        images = torch.lerp(mean, images, contrast).clamp_(0, 1)
        return torch.lerp(_grey(images), images, saturation).clamp_(0, 1)


VIEWS = {"crop_flip": CropFlipView, "resized_crop": ResizedCropView}


def crop_boxes(
    uniforms: Tensor,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Return (top, left, height, width) of random crops, (N, 4) float64 whole numbers of pixels.

    Args:
        uniforms: (N, 4) in [0, 1): of area, ratio, y and x.
        height: of the images, in pixels.
        width: of the images, in pixels.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width / height, log-uniform, clamped to what the area lets fit.
    """
    share, shape, y, x = uniforms.unbind(1)
    area = height * width * (scale[0] + share * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    drawn = torch.exp(low + shape * (high - low))
    drawn = drawn.clamp(area / height**2, width**2 / area)  # width <= W and height <= H
    tall = torch.sqrt(area / drawn).round().clamp(1, height)
    wide = torch.sqrt(area * drawn).round().clamp(1, width)
    top, left = _whole(y, height - tall + 1), _whole(x, width - wide + 1)
    return torch.stack([top.double(), left.double(), tall, wide], dim=1)


def _whole(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Return whole numbers, each of 0 to count - 1 as likely as the others."""
    return (uniform * count).long()


def _near(centre: Tensor, reach: int, size: int) -> Tensor:
    """Return 1 at those of ``size`` positions in [centre - reach, centre + reach), else 0."""
    position = torch.arange(size)
    inside = (position >= centre - reach) & (position < centre + reach)
    return inside.to(torch.uint8)  # (N, size)


def _gather(images: Tensor, y: Tensor, x: Tensor, padding: int) -> Tensor:
    """Read row y (N, H) and column x (N, W) of the images padded with zeros on each side."""
    _, channels, _, width = images.shape
    y, x = (t.to(images.device, torch.int32) for t in (y, x))
    index = torch.add(x[:, None], y[:, :, None], alpha=width + 2 * padding).long()  # (N, H, W)
    index = index.flatten(1)[:, None].expand(-1, channels, -1)
    return F.pad(images, (padding,) * 4).flatten(2).gather(2, index).view(images.shape)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, device=images.device)[:, None, None]
    return (images * weights).sum(1, keepdim=True)  # (N, 1, H, W)


def normalise(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise float32 values (…, C, H, W) in [0, 1], in place."""
    centre, spread = (torch.tensor(s, device=values.device).view(-1, 1, 1) for s in (mean, std))
    return values.sub_(centre).div_(spread)


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, 3) or not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name}: {values}; must be 1 or 3 finite numbers, one per channel")
    if min(std) <= 0:
        raise ValueError(f"std: {std}; must be above 0, for values in [0, 1]")


def _check_images(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images: dtype {images.dtype}; must be torch.uint8 (a view normalises itself)"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images: shape {tuple(images.shape)}; must be (N, 1, H, W) or (N, 3, H, W); give a "
            "single image its batch axis with images[None]"
        )
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.shape[1]):
            raise ValueError(
                f"{name}: {len(values)} values for images of {images.shape[1]} channel(s); must be "
                "one value for each channel, or one for all"
            )


def _check_uniforms(uniforms: Tensor, images: Tensor, draws: int) -> None:
    if uniforms.shape != (len(images), draws):
        raise ValueError(
            f"uniforms: shape {tuple(uniforms.shape)}; must be ({len(images)}, {draws}): the "
            "view's draws for each image"
        )
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("uniforms: a number outside [0, 1); must be uniform draws, 1 excluded")
