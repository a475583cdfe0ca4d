"""The corruptions one image at a time, as the papers' code has them: numpy, scipy and Pillow.

    plain[name](image, numbers, *constants) -> image      (H, W, C) float64 in [0, 1]

``numbers`` is what draws: :class:`SameNumbers` gives what the batch was given, :class:`OwnNumbers`
draws by numpy.
"""

import io
import math

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, stats

from raykb.data.corruptions.weather import DRIFT, ROUGHNESS, SHEETS

LUMA = np.array([0.299, 0.587, 0.114])


class SameNumbers:
    """What the only image of ``draws`` is given."""

    def __init__(self, draws):
        self.draws = draws

    def uniform(self, what, *shape, low=0.0, high=1.0):
        return self.draws.uniform(what, *shape, low=low, high=high)[0].double().numpy()

    def normal(self, what, *shape):
        return self.draws.normal(what, *shape)[0].double().numpy()

    def poisson(self, rates):
        return stats.poisson.ppf(self.uniform("noise", *rates.shape), rates).clip(min=0)


class OwnNumbers:
    """What numpy's generator draws."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def uniform(self, what, *shape, low=0.0, high=1.0):
        return self.rng.uniform(low, high, shape)

    def normal(self, what, *shape):
        return self.rng.normal(size=shape)

    def poisson(self, rates):
        return self.rng.poisson(rates)


def to_bytes(image):
    """Return values cut to bytes; a billionth is what float64 may have lost."""
    return (image.clip(0, 1) * 255 + 1e-9).astype(np.uint8)


def first(image):
    return image.transpose(2, 0, 1)


def last(image):
    return image.transpose(1, 2, 0)


def grey(image):
    return image if image.shape[2] == 1 else (image @ LUMA)[:, :, None]


# Noise


def gaussian_noise(image, numbers, spread):
    return image + spread * last(numbers.normal("noise", *first(image).shape))


def speckle_noise(image, numbers, spread):
    return image + image * spread * last(numbers.normal("noise", *first(image).shape))


def shot_noise(image, numbers, photons):
    return last(numbers.poisson(first(image) * photons)) / photons


def impulse_noise(image, numbers, share):
    drawn, out = last(numbers.uniform("noise", *first(image).shape)), image.copy()
    out[drawn < share] = 0
    out[drawn < share / 2] = 1
    return out


# Blur


def gaussian_blur(image, numbers, sigma, **options):
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), **{"mode": "nearest"} | options)


def defocus_blur(image, numbers, radius, alias):
    reach, soft = (8, 1) if radius <= 8 else (radius, 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = (x**2 + y**2 <= radius**2).astype(float)
    disc /= disc.sum()
    line = np.exp(-(np.arange(-soft, soft + 1.0) ** 2) / (2 * alias**2))
    for axis in (0, 1):
        disc = ndimage.correlate1d(disc, line / line.sum(), axis, mode="mirror")
    return ndimage.correlate(image, disc[:, :, None], mode="mirror")


def glass_blur(image, numbers, sigma, reach, passes):
    image = to_bytes(gaussian_blur(image, numbers, sigma)) / 255
    height, width = image.shape[:2]
    for number in range(passes):
        moves = numbers.uniform(f"pass {number}", 2, height, width, low=-reach, high=reach)
        across, down = np.floor(moves).astype(int)
        for y in range(height - reach, reach, -1):
            for x in range(width - reach, reach, -1):
                image[y, x] = image[y + down[y, x], x + across[y, x]]
    return gaussian_blur(image, numbers, sigma)


def streaks(image, degrees, radius, sigma):
    height, width = image.shape[:2]
    weights = np.exp(-(np.arange(2 * radius + 1.0) ** 2) / (2 * sigma**2))
    out, turn = np.zeros_like(image), np.deg2rad(degrees)
    for step, weight in enumerate(weights / weights.sum()):
        down, across = (math.ceil(step * f(turn) - 0.5) for f in (np.sin, np.cos))
        rows = (np.arange(height) + down).clip(0, height - 1)
        columns = (np.arange(width) + across).clip(0, width - 1)
        out += weight * image[rows][:, columns]
    return out


def motion_blur(image, numbers, radius, sigma):
    degrees = numbers.uniform("angle", low=-45.0, high=45.0)
    return streaks(image, degrees, radius, sigma)


def zoomed(image, factor):
    height, width = image.shape[:2]
    seen = [math.ceil(side / factor) for side in (height, width)]
    top, left = (height - seen[0]) // 2, (width - seen[1]) // 2
    part = image[top : top + seen[0], left : left + seen[1]]
    large = ndimage.zoom(part, (factor, factor, 1), order=1, mode="nearest")
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[top : top + height, left : left + width]


def zoom_blur(image, numbers, most, step):
    factors = np.arange(1, most, step)
    return (image + sum(zoomed(image, factor) for factor in factors)) / (len(factors) + 1)


# Weather


def snow(image, numbers, mean, spread, zoom, least, radius, sigma, keep):
    flakes = last(numbers.normal("flakes", 1, *image.shape[:2])) * spread + mean
    flakes = zoomed(flakes, zoom)
    flakes[flakes < least] = 0
    degrees = numbers.uniform("angle", low=-135.0, high=-45.0)
    flakes = streaks(flakes.clip(0, 1), degrees, radius, sigma)
    white = np.maximum(image, 1.5 * grey(image) + 0.5)
    return keep * image + (1 - keep) * white + flakes + np.rot90(flakes, 2)


def plasma(numbers, side, decay):
    side = 1 << max(1, (side - 1).bit_length())
    drawn = numbers.uniform("plasma", side, side, low=-1.0, high=1.0)
    cloud, step = np.zeros((side, side)), side
    while step > 1:
        even, odd = slice(None, None, step), slice(step // 2, None, step)
        four = cloud[even, even] + np.roll(cloud[even, even], -1, 0)
        cloud[odd, odd] = (four + np.roll(four, -1, 1)) / 4 + drawn[odd, odd]
        for rows, columns, axis in ((even, odd, 1), (odd, even, 0)):
            four = cloud[even, even] + np.roll(cloud[even, even], -1, axis)
            four = four + cloud[odd, odd] + np.roll(cloud[odd, odd], 1, 1 - axis)
            cloud[rows, columns] = four / 4 + drawn[rows, columns]
        step, drawn = step // 2, drawn / decay**2
    return (cloud - cloud.min()) / (cloud.max() - cloud.min())


def fog(image, numbers, amount, decay):
    height, width = image.shape[:2]
    cloud = plasma(numbers, max(height, width), decay)[:height, :width, None]
    return (image + amount * cloud) * image.max() / (image.max() + amount)


def frost(image, numbers, keep, amount):
    height, width = image.shape[:2]
    *tint, spread = SHEETS[int(numbers.uniform("sheet", high=len(SHEETS)))]
    cloud = plasma(numbers, max(height, width), ROUGHNESS)[:height, :width, None]
    ridges = 1 - abs(2 * cloud - 1)
    drift = DRIFT * numbers.normal("drift", 1, 1, 1)
    ice = (tint + drift + spread * (ridges - ridges.mean()) / ridges.std()).clip(0, 1)
    return keep * image + amount * (grey(ice) if image.shape[2] == 1 else ice)


def brightness(image, numbers, more):
    if image.shape[2] == 1:
        return (image + more).clip(0, 1)
    hsv = rgb_to_hsv(image)
    hsv[..., 2] = (hsv[..., 2] + more).clip(0, 1)
    return hsv_to_rgb(hsv)


def spatter(image, numbers, mean, spread, sigma, least, end, mud):
    noise = last(numbers.normal("liquid", 1, *image.shape[:2])) * spread + mean
    noise = gaussian_blur(noise, numbers, sigma)
    colour = np.array([63, 42, 20] if mud else [175, 238, 238]) / 255
    if image.shape[2] == 1:
        colour = colour @ LUMA
    if mud:
        drops = gaussian_blur((noise > least).astype(float), numbers, end)
        drops[drops < 0.8] = 0
        return image * (1 - drops) + drops * colour
    noise[noise < least] = 0
    liquid = to_bytes(noise)[:, :, 0]
    shine = liquid * slopes(liquid)
    return image + end * (shine / max(shine.max(), 1))[:, :, None] * colour


def slopes(liquid):
    marks = edges(liquid)
    depth = np.full(liquid.shape, 20.0)
    if marks.any():
        depth = ndimage.distance_transform_edt(~marks).clip(max=20)
    depth = (ndimage.uniform_filter(depth, 3, mode="mirror") + 1e-4).astype(int)
    counts = np.bincount(depth.flat, minlength=21)
    lowest = counts[depth.min()]
    if lowest < depth.size:
        depth = np.round((counts.cumsum() - lowest) * (255 / (depth.size - lowest)))[depth]
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = ndimage.correlate(depth.astype(float), light, mode="mirror").clip(0, 255)
    return np.round(ndimage.uniform_filter(relief, 3, mode="mirror"))


def edges(image, low=50, high=150):
    """Return Canny's edges of an (H, W) image of bytes, as OpenCV finds them."""
    across, down = (ndimage.sobel(image.astype(int), axis, mode="nearest") for axis in (1, 0))
    steep = np.pad(abs(across) + abs(down), 1)
    candidates = np.zeros(image.shape, bool)
    for y, x in np.argwhere(steep[1:-1, 1:-1] > low):
        here, gx, gy = steep[y + 1, x + 1], across[y, x], down[y, x]
        limit = 13573 * abs(gx)
        if 32768 * abs(gy) < limit:
            before, after, either = steep[y + 1, x], steep[y + 1, x + 2], True
        elif 32768 * abs(gy) > limit + 65536 * abs(gx):
            before, after, either = steep[y, x + 1], steep[y + 2, x + 1], True
        else:
            way = -1 if gx * gy < 0 else 1
            before, after, either = steep[y, x + 1 - way], steep[y + 2, x + 1 + way], False
        candidates[y, x] = here > before and (here > after or (either and here == after))
    regions, _ = ndimage.label(candidates, np.ones((3, 3)))
    begun = np.unique(regions[candidates & (steep[1:-1, 1:-1] > high)])
    return np.isin(regions, begun[begun > 0])


# Digital


def contrast(image, numbers, factor):
    mean = image.mean((0, 1))
    return (image - mean) * factor + mean


def saturate(image, numbers, factor, more):
    if image.shape[2] == 1:
        return image
    hsv = rgb_to_hsv(image)
    hsv[..., 1] = (hsv[..., 1] * factor + more).clip(0, 1)
    return hsv_to_rgb(hsv)


def elastic_transform(image, numbers, reach, sigma, shift):
    height, width = image.shape[:2]
    side = min(height, width) // 3
    points = np.array([width // 2, height // 2]) + side * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + numbers.uniform("points", 2, 3, low=-shift, high=shift).T
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points).T  # (2, 3)
    y, x = np.mgrid[:height, :width].astype(float)
    places = back @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    image = read_at(image, places.reshape(2, height, width), "mirror")
    field = last(numbers.uniform("field", 2, height, width, low=-1.0, high=1.0))
    pull = reach * gaussian_blur(field, numbers, sigma, mode="reflect", truncate=3)
    return read_at(image, np.stack([x, y]) + first(pull), "reflect")


def read_at(image, places, mode):
    read = [ndimage.map_coordinates(c, places[::-1], order=1, mode=mode) for c in first(image)]
    return np.stack(read, -1)


def as_picture(image):
    values = to_bytes(image)
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def as_array(picture):
    values = np.asarray(picture) / 255
    return values[:, :, None] if values.ndim == 2 else values


def pixelate(image, numbers, scale):
    picture, (height, width) = as_picture(image), image.shape[:2]
    small = max(1, int(width * scale)), max(1, int(height * scale))
    box = Image.Resampling.BOX
    return as_array(picture.resize(small, box).resize((width, height), box))


def jpeg_compression(image, numbers, quality):
    file = io.BytesIO()
    as_picture(image).save(file, "JPEG", quality=quality)
    return as_array(Image.open(file))


PLAIN = {
    formula.__name__: formula
    for formula in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, fog, brightness),
        *(contrast, elastic_transform, pixelate, jpeg_compression),
        *(speckle_noise, gaussian_blur, spatter, saturate),
    )
}
