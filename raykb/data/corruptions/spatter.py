"""Drops of water or of mud on the lens; images are (N, C, H, W) float32 in [0, 1].

What is thick of a smooth noise is liquid. Mud covers; water shines where its surface slopes, which
is told from the distance to the liquid's edges. Edges are Canny's ("A computational approach to
edge detection", IEEE PAMI 8, 1986) as OpenCV has them.

Departures: distances are exact, where OpenCV's are sums of steps and so within 2 % of that; liquid
thicker than white counts as white, where the source's bytes begin again at black.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.data.corruptions.blur import gaussian_blur
from raykb.data.corruptions.draws import Draws
from raykb.data.crops import grey

_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)
_EDGES = (50, 150)  # gradients from which on an edge goes on, and begins
_FAR = 20  # pixels: what is farther from an edge is as if it were this far
_TAN = 13573  # of 22.5 degrees, in 1/32768
_LIGHT = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))  # from the upper left, on a surface


def spatter(
    images: Tensor,
    draws: Draws,
    mean: float,
    spread: float,
    sigma: float,
    least: float,
    last: float,
    mud: bool,
) -> Tensor:
    """Return images with drops on them.

    Args:
        images: (N, C, H, W).
        draws: of the noise.
        mean: of the noise.
        spread: of the noise, before it is made smooth.
        sigma: of the Gaussian that makes it smooth, in pixels.
        least: noise below it is no liquid.
        last: of mud the sigma of a last blur, in pixels; of water how brightly it shines.
        mud: or else water.
    """
    height, width = images.shape[2:]
    noise = draws.normal("liquid", 1, height, width).mul_(spread).add_(mean)
    noise = gaussian_blur(noise, draws, sigma)
    if mud:
        drops = gaussian_blur((noise > least).float(), draws, last)
        drops = torch.where(drops < 0.8, 0.0, drops)
        return images * (1 - drops) + _coloured(drops, _MUD, images)
    liquid = torch.where(noise < least, 0.0, noise).clamp_(0, 1).mul_(255).floor_()
    shine = liquid * slopes(liquid)
    shine = shine / shine.amax((2, 3), keepdim=True).clamp(min=1)
    return images + last * _coloured(shine, _WATER, images)


def _coloured(amount: Tensor, colour: tuple[float, ...], images: Tensor) -> Tensor:
    own = amount * torch.tensor(colour, device=images.device)[:, None, None]
    return grey(own) if images.shape[1] == 1 else own


def slopes(liquid: Tensor) -> Tensor:
    """Return how liquid (N, 1, H, W) shines in the light, whole values from 0 to 255."""
    depth = _filtered(distances(edges(liquid)), torch.ones(3, 3) / 9)
    relief = _filtered(equalized((depth + 1e-4).floor()), torch.tensor(_LIGHT).float())
    return _filtered(relief.clamp_(0, 255), torch.ones(3, 3) / 9).round_()


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Return images (N, 1, H, W) under a kernel (3, 3); outside they are mirrored at the border."""
    mode = "reflect" if min(images.shape[2:]) > 1 else "replicate"
    padded = F.pad(images, (1, 1, 1, 1), mode)
    return F.conv2d(padded, kernel.to(images.device)[None, None])


def edges(images: Tensor) -> Tensor:
    """Return where Canny finds edges, (N, 1, H, W) bool, of images with values from 0 to 255."""
    padded = F.pad(images, (1, 1, 1, 1), "replicate")
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([sobel, sobel.T])[:, None].to(images.device)
    across, down = F.conv2d(padded, kernels).split(1, 1)
    steep = across.abs() + down.abs()
    candidates = (steep > _EDGES[0]) & _crests(steep, across, down)
    found, grown = torch.zeros_like(candidates), candidates & (steep > _EDGES[1])
    while not torch.equal(found, grown):  # an edge goes on over candidates that touch it
        found, grown = grown, (F.max_pool2d(grown.float(), 3, 1, 1) > 0) & candidates
    return found


def _crests(steep: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Return where an image is steeper than at both sides along its gradient, (N, 1, H, W) bool."""
    height, width = steep.shape[2:]
    padded = F.pad(steep, (1, 1, 1, 1))

    def beside(y: int, x: int) -> Tensor:
        return padded[:, :, 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    limit, rise = _TAN * across.abs(), 32768 * down.abs()
    level = (steep > beside(0, -1)) & (steep >= beside(0, 1))
    upright = (steep > beside(-1, 0)) & (steep >= beside(1, 0))
    falling = (steep > beside(-1, -1)) & (steep > beside(1, 1))
    rising = (steep > beside(-1, 1)) & (steep > beside(1, -1))
    slanted = torch.where(across * down < 0, rising, falling)
    flat, tall = rise < limit, rise > limit + 65536 * across.abs()
    return torch.where(flat, level, torch.where(tall, upright, slanted))


def distances(marks: Tensor) -> Tensor:
    """Return how far each pixel is from the nearest of ``marks`` (N, 1, H, W), up to 20 pixels."""
    squares = torch.where(marks, 0.0, float(_FAR**2))
    for axis in (2, 3):
        side = squares.shape[axis]
        reach = min(_FAR, side - 1)
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach)
        padded = F.pad(squares, pad, value=float(_FAR**2))
        for offset in range(-reach, reach + 1):
            squares = torch.minimum(squares, padded.narrow(axis, reach + offset, side) + offset**2)
    return squares.sqrt()


def equalized(images: Tensor) -> Tensor:
    """Return images (N, 1, H, W) of whole values up to 20 with histograms as even as may be."""
    pixels = images.flatten(1).long()
    ranks = torch.stack([(pixels <= value).sum(1) for value in range(_FAR + 1)], 1)
    lowest = ranks.gather(1, pixels.amin(1, keepdim=True))
    others = pixels.shape[1] - lowest
    table = ((ranks - lowest) * (255 / others.clamp(min=1))).round()
    even = torch.where(others > 0, table.gather(1, pixels), pixels)  # one value stays as it is
    return even.view(images.shape)
