"""Random crops of images, as self-supervised learning sees them; uint8 in and out, by the batch.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, arXiv 2002.05709, appendix A:

    crop       a part of the image, of a drawn area and ratio, resized; then mirrored, or not
    jitter     brightness, contrast and saturation times 1 - 0.8 s to 1 + 0.8 s, and the hue turned
               by up to 0.2 s of a circle, in ``jitter`` of the views
    grey       without colour, in ``grey`` of the views
    blur       by a Gaussian of 0.1 to 2 pixels, in ``blur`` of the views
    solarize   bright values inverted, in ``solarize`` of the views (Grill et al., "Bootstrap your
               own latent", NeurIPS 2020, arXiv 2006.07733)

Small crops beside the large ones are those of Caron et al., "Unsupervised Learning of Visual
Features by Contrasting Cluster Assignments", NeurIPS 2020, arXiv 2006.09882.

Departures: the ratio is clamped to what the area lets fit where the source draws again; colours are
changed in the order above where it is shuffled; a Gaussian ends at the image's border, where the
rest of it counts for all, and is seldom cut off at a tenth of the side.

A crop is resized by two matrices for each image, one an axis, whose rows are the weights of the
pixels: bilinear and antialiased, as Pillow does it, and a product of matrices on any device. What
becomes of an image depends on (seed, epoch, id, number of the view) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raykb.data.operations import rows_at_a_time
from raykb.data.views import crop_boxes
from raykb.engine.arguments import at_least, misfits, or_none, refuse
from raykb.engine.seeding import keyed_uniform, stream_seed

DRAWS = 14  # area, ratio, y, x, flip; jitter or not, four of it; grey; blur or not, sigma; solarize
SIGMA = (0.1, 2.0)  # pixels
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class RandomCrops:
    """SimCLR's random views of images, and small crops beside them.

    Attributes:
        size: side of a view in pixels; None for the shorter side of the images.
        scale: least and greatest share of the image's area in a view.
        ratio: least and greatest width / height of what is cut out, log-uniform.
        flip: whether half of the views are mirrored left to right.
        strength: s, of the changes of colour.
        jitter: share of the views whose colours are changed.
        grey: share of the views without colour.
        blur: share of the views that are blurred; a number for each view, or one for all.
        solarize: share of the views that are solarized; the same.
        local_size: side of a small crop in pixels; None for half of a view's.
        local_scale: least and greatest share of the image's area in a small crop.
    """

    size: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    strength: float = 1.0
    jitter: float = 0.8
    grey: float = 0.2
    blur: Sequence[float] = (0.5,)
    solarize: Sequence[float] = (0.0,)
    local_size: int | None = None
    local_scale: tuple[float, float] = (0.05, 0.3)

    def __post_init__(self) -> None:
        side = or_none(at_least(1))
        problems = misfits(self, size=side, local_size=side, strength=at_least(0))
        for name in ("scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                problems.append(f"{name}: {[low, high]}, must be (least, greatest) in (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            problems.append(f"ratio: {list(self.ratio)}, must be (least, greatest) above 0")
        for name in ("jitter", "grey", "blur", "solarize"):
            shares = getattr(self, name)
            shares = shares if isinstance(shares, Sequence) else [shares]
            if not shares or not all(0 <= share <= 1 for share in shares):
                problems.append(f"{name}: {shares}, must be a share in [0, 1]")
        refuse(problems)

    def views(
        self, images: Tensor, ids: np.ndarray | Tensor, seed: int, epoch: int, count: int = 2
    ) -> Tensor:
        """Return ``count`` views of each image, (N, count, C, size, size) uint8.

        Args:
            images: (N, C, H, W) uint8, one channel or three, on any device.
            ids: (N,) integer sample ids.
            seed: of the views.
            epoch: each sees other views.
            count: V.
        """
        size = self._size(images)
        return self._drawn(images, ids, (seed, "crop", epoch), count, size, self.scale)

    def local(
        self, images: Tensor, ids: np.ndarray | Tensor, seed: int, epoch: int, count: int
    ) -> Tensor:
        """Return ``count`` small crops, (N, count, C, local_size, local_size) uint8; see above."""
        size = self.local_size or max(1, self._size(images) // 2)
        return self._drawn(images, ids, (seed, "local crop", epoch), count, size, self.local_scale)

    def _size(self, images: Tensor) -> int:
        return self.size or min(images.shape[2:])

    def _drawn(
        self,
        images: Tensor,
        ids: np.ndarray | Tensor,
        stream: tuple[int, str, int],
        count: int,
        size: int,
        scale: tuple[float, float],
    ) -> Tensor:
        _check(images, ids)
        out = images.new_empty(len(images), count, images.shape[1], size, size)
        rows = rows_at_a_time(images)
        for number in range(count):
            uniforms = keyed_uniform(stream_seed(*stream, number), ids, DRAWS)
            pieces = zip(out.split(rows), images.split(rows), uniforms.split(rows), strict=True)
            for target, piece, numbers in pieces:
                target[:, number] = self._view(piece, numbers, number, size, scale)
        return out

    def _view(
        self,
        images: Tensor,
        uniforms: Tensor,
        number: int,
        size: int,
        scale: tuple[float, float],
    ) -> Tensor:
        """Return view ``number``, uint8, of uniform numbers (N, DRAWS)."""
        height, width = images.shape[2:]
        boxes = crop_boxes(uniforms[:, :4], height, width, scale, self.ratio)
        mirrored = uniforms[:, 4] < (0.5 if self.flip else 0.0)
        out = resized_crops(images, boxes, mirrored, size)
        if self.jitter and self.strength:
            out = jittered(out, self._factors(uniforms[:, 5:10]))
        if self.grey and images.shape[1] == 3:
            out = _chosen(out, uniforms[:, 10] < self.grey, grey(out))
        blurs = self.blur[number % len(self.blur)]
        if len(rows := (uniforms[:, 11] < blurs).nonzero()[:, 0]):
            sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * uniforms[rows, 12]
            there = rows.to(out.device)
            out[there] = blurred(out[there], sigma)
        if solarizes := self.solarize[number % len(self.solarize)]:
            inverted = torch.where(out < 0.5, out, 1 - out)
            out = _chosen(out, uniforms[:, 13] < solarizes, inverted)
        return out.mul_(255).round_().to(torch.uint8)

    def _factors(self, uniforms: Tensor) -> Tensor:
        """Return the factors (N, 3) and the turn of the hue, as (N, 4), of (N, 5) numbers."""
        reach = self.strength * torch.tensor([0.8, 0.8, 0.8, 0.2], dtype=torch.float64)
        drawn = reach * (2 * uniforms[:, 1:] - 1) * (uniforms[:, :1] < self.jitter)
        return (drawn + torch.tensor([1.0, 1.0, 1.0, 0.0])).clamp(min=-1.0)


CROPS = {"simclr": RandomCrops}


def resized_crops(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Return parts of images, resized and some mirrored, (N, C, size, size) float32 in [0, 1].

    Args:
        images: (N, C, H, W) uint8.
        boxes: (N, 4) float64 on the CPU: top, left, height and width, in pixels; what lies beyond
            the image is NaN.
        mirrored: (N,) bool on the CPU.
        size: in pixels.
    """
    top, left, tall, wide = boxes.float().to(images.device).unbind(1)
    y = _weights(top, tall, images.shape[2], size)[:, None]  # (N, 1, size, H)
    x = _weights(left, wide, images.shape[3], size)
    x = torch.where(mirrored.to(images.device)[:, None, None], x.flip(1), x)[:, None]
    return (y / 255 @ (images.float() @ x.mT)).clamp_(0, 1)


def _weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return what each pixel of a line counts for each of its resized part, (N, size, side).

    It is a triangle about the pixel's place that reaches over a pixel of whichever is larger.
    """
    pixels = torch.arange(max(side, size), device=start.device) + 0.5
    start, length = start[:, None, None], length[:, None, None]  # (N, 1, 1)
    step = length / size
    centre, position = start + step * pixels[:size, None], pixels[:side]
    weights = (1 - (position - centre).abs() / step.clamp(min=1)).clamp_(min=0)
    weights = weights * ((position > start) & (position < start + length))
    return weights / weights.sum(2, keepdim=True)


def jittered(images: Tensor, factors: Tensor) -> Tensor:
    """Return images (N, C, H, W) in [0, 1] with other colours.

    Args:
        images: float32; of those of one channel colour stays as it is.
        factors: (N, 4) of brightness, contrast, saturation, and the hue's turn in circles.
    """
    there = factors.float().to(images.device)[:, :, None, None, None]  # (N, 4, 1, 1, 1)
    brightness, contrast, saturation, turn = there.unbind(1)
    images = (images * brightness).clamp_(0, 1)
    mean = grey(images).mean((2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast).clamp_(0, 1)
    if images.shape[1] == 1:
        return images
    images = torch.lerp(grey(images), images, saturation).clamp_(0, 1)
    return turned(images, turn[:, 0])


def turned(images: Tensor, turn: Tensor) -> Tensor:
    """Return images (N, 3, H, W) with the hue of HSV turned by shares (N, 1, 1) of a circle."""
    value, brightest = images.max(1)
    chroma = value - images.amin(1)
    after, before = images.roll(-1, 1), images.roll(-2, 1)  # G, B, R and B, R, G
    rise = (after - before).gather(1, brightest[:, None])[:, 0] / chroma.clamp(min=1e-12)
    hue = 2 * brightest + rise + 6 * turn  # in sixths of a circle
    place = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    k = (hue[:, None] + place) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Return square images (N, C, S, S), blurred by Gaussians of ``sigma`` (N,) pixels."""
    side = images.shape[3]
    pixels = torch.arange(side, device=images.device)
    apart = (pixels[:, None] - pixels).abs()  # (S, S)
    spread = sigma.float().to(images.device)[:, None, None]
    weights = torch.exp(-(apart**2) / (2 * spread**2)) * (apart <= max(1, side // 20))
    weights = (weights / weights.sum(2, keepdim=True))[:, None]  # (N, 1, S, S)
    return weights @ images @ weights.mT


def grey(images: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W) of images (N, C, H, W), which are it if they have no colour."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, device=images.device)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def _chosen(images: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Return ``others`` in the rows (N,) that are chosen, else ``images``."""
    return torch.where(rows.to(images.device)[:, None, None, None], others, images)


def _check(images: Tensor, ids: np.ndarray | Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images: {images.dtype} of shape {tuple(images.shape)}; must be uint8 of shape "
            "(N, 1, H, W) or (N, 3, H, W)"
        )
    if len(ids) != len(images):
        raise ValueError(f"ids: {len(ids)} for {len(images)} images; must be one for each")
