"""Weather: something is between the camera and the scene; images (N, C, H, W) float32 in [0, 1].

Departures: frost is a texture that is made up here, where the source has five photographs. It has
their colours, their spread, and as much difference from one pixel to the next (measured on those of
the package imagecorruptions-imaug 1.1.5), and fractal ridges in place of their crystals.
"""

import torch
from torch import Tensor

from raykb.data.corruptions.blur import streaks
from raykb.data.corruptions.draws import Draws
from raykb.data.corruptions.lines import along_axes, zooming
from raykb.data.crops import grey

ROUGHNESS = 1.1  # decay of frost: pixels side by side then differ as in the photographs
DRIFT = 0.04  # by how much parts of a photograph are brighter than others
SHEETS = (  # mean red, green, blue and spread of each photograph
    (0.30, 0.58, 0.65, 0.06),
    (0.78, 0.79, 0.83, 0.08),
    (0.78, 0.79, 0.83, 0.08),
    (0.57, 0.62, 0.67, 0.10),
    (0.40, 0.45, 0.49, 0.14),
)


def snow(
    images: Tensor,
    draws: Draws,
    mean: float,
    spread: float,
    zoom: float,
    least: float,
    radius: int,
    sigma: float,
    keep: float,
) -> Tensor:
    """Return whitened images with flakes that fall, and the same flakes turned by half a turn.

    Args:
        images: (N, C, H, W).
        draws: of flakes and of the direction that they fall in.
        mean: of the noise that flakes are the peaks of.
        spread: of it.
        zoom: size of a flake, in pixels.
        least: noise below it is no flake.
        radius: of the streaks, see :func:`raykb.data.corruptions.blur.streaks`.
        sigma: of them.
        keep: what is left of the image's own colours.
    """
    height, width = images.shape[2:]
    noise = draws.normal("flakes", 1, height, width).mul_(spread).add_(mean)
    noise = along_axes(noise, zooming(height, zoom), zooming(width, zoom))
    flakes = torch.where(noise < least, 0.0, noise).clamp_(0, 1)
    degrees = draws.uniform("angle", low=-135.0, high=-45.0)
    flakes = streaks(flakes, degrees, radius, sigma)
    white = torch.maximum(images, 1.5 * grey(images) + 0.5)
    return keep * images + (1 - keep) * white + flakes + flakes.flip(2, 3)


def fog(images: Tensor, draws: Draws, amount: float, decay: float) -> Tensor:
    """Return ``(x + amount * plasma) * m / (m + amount)``, m the greatest value of the image."""
    height, width = images.shape[2:]
    brightest = images.amax((1, 2, 3), keepdim=True)
    cloud = plasma(draws, max(height, width), decay)[:, None, :height, :width]
    return (images + amount * cloud) * (brightest / (brightest + amount))


def frost(images: Tensor, draws: Draws, keep: float, amount: float) -> Tensor:
    """Return ``keep * x + amount * frost``."""
    return keep * images + amount * ice_sheets(draws, *images.shape[1:])


def ice_sheets(draws: Draws, channels: int, height: int, width: int) -> Tensor:
    """Return frost, (N, C, H, W) in [0, 1], of one of five kinds for each image."""
    sheets = torch.tensor(SHEETS, device=draws.device)
    kind = draws.uniform("sheet", high=len(sheets)).long()
    tint, spread = sheets[kind][:, :, None, None].split([3, 1], 1)  # (N, 3, 1, 1), (N, 1, 1, 1)
    heights = plasma(draws, max(height, width), ROUGHNESS)[:, None, :height, :width]
    ridges = 1 - (2 * heights - 1).abs()
    mean, own = ridges.mean((2, 3), keepdim=True), ridges.std((2, 3), correction=0, keepdim=True)
    drift = DRIFT * draws.normal("drift", 1, 1, 1)
    ice = (tint + drift + spread * (ridges - mean) / own.clamp(min=1e-6)).clamp_(0, 1)
    return grey(ice) if channels == 1 else ice


def plasma(draws: Draws, side: int, decay: float) -> Tensor:
    """Return fractal clouds, (N, S, S) from 0 to 1, S the next power of two from ``side`` on.

    Diamonds and squares (Fournier, Fussell, Carpenter, Communications of the ACM 25, 1982): the
    middle of four points is their mean and a random number, whose range falls by ``decay`` squared
    from one size of squares to the next. Opposite borders meet.
    """
    step = side = 1 << max(1, (side - 1).bit_length())
    numbers = draws.uniform("plasma", side, side, low=-1.0, high=1.0)
    clouds = torch.zeros_like(numbers)
    while step > 1:
        even, odd = slice(None, None, step), slice(step // 2, None, step)
        corners = clouds[:, even, even]
        below, beside = (corners + corners.roll(-1, axis) for axis in (1, 2))
        clouds[:, odd, odd] = (below + below.roll(-1, 2)) / 4 + numbers[:, odd, odd]
        middles = clouds[:, odd, odd]
        clouds[:, even, odd] = (beside + middles + middles.roll(1, 1)) / 4 + numbers[:, even, odd]
        clouds[:, odd, even] = (below + middles + middles.roll(1, 2)) / 4 + numbers[:, odd, even]
        step, numbers = step // 2, numbers / decay**2
    clouds = clouds - clouds.amin((1, 2), keepdim=True)
    return clouds / clouds.amax((1, 2), keepdim=True).clamp(min=1e-12)
