"""From files, bytes and pixels to uint8 arrays, and back to PNG: Pillow, its pitfalls settled.

What may come in, and what becomes of it:

- grey and black-and-white images have one channel, all others three; ``channels`` overrides:
  grey is repeated, colour becomes luminance (ITU-R 601, as Pillow rounds it);
- transparency is composited on white, as a page or a browser shows it;
- 16-bit grey is scaled to 8 bits; palettes, CMYK and the other colour spaces become RGB;
- an EXIF orientation is applied; of an animation the first frame is taken;
- an image of more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` is refused before it is decoded;
- files are BMP, GIF, JPEG, PPM and its kin, PNG, TIFF, WebP or JPEG 2000, whatever their names: of
  the others that Pillow knows some are programs (EPS, which it hands to an interpreter).
"""

import io
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Encoded = bytes | Path | np.ndarray | None
"""An image file's bytes, its path, or its pixels: uint8 (H, W) or (H, W, 3)."""

_FORMATS = ("BMP", "GIF", "JPEG", "PPM", "PNG", "TIFF", "WEBP", "JPEG2000")
_TILE = 256  # side of what is scaled to 8 bits at a time
_GREY_MODES = {"1", "L", "LA", "La"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_ORIENTATION_TAG = 0x0112


class BadImageError(ValueError):
    """What was given is no image that can be decoded."""


def decode(
    encoded: Encoded, *, image_size: int | None = None, channels: int | None = None
) -> np.ndarray:
    """Return the image as (C, H, W) uint8.

    Args:
        encoded: a file's bytes, a path or pixels.
        image_size: scale to cover a square of this many pixels (bicubic) and cut out its centre;
            ``None`` keeps the size.
        channels: 1 or 3; ``None`` keeps what the image has.

    Raises:
        BadImageError: it cannot be decoded, for the reason named.
    """
    image = Image.fromarray(encoded) if isinstance(encoded, np.ndarray) else _open(encoded)
    mode = {None: image.mode, 1: "L", 3: "RGB"}[channels]
    if image.mode != mode:
        image = image.convert(mode)
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    pixels: np.ndarray = np.asarray(image)  # (H, W) or (H, W, 3)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))


def decode_all(
    encoded: Sequence[Encoded], *, image_size: int | None = None, channels: int | None = None
) -> list[np.ndarray | BadImageError]:
    """Return each image as :func:`decode` does, or the reason why it cannot."""

    def attempt(one: Encoded) -> np.ndarray | BadImageError:
        try:
            return decode(one, image_size=image_size, channels=channels)
        except BadImageError as error:
            return error

    if sum(map(_is_photograph, encoded[:100])) < 50:
        return list(map(attempt, encoded))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(attempt, encoded))


def _is_photograph(encoded: Encoded) -> bool:
    """Say if decoding, in which Pillow lets other threads run, outweighs handing it to a thread."""
    return isinstance(encoded, Path) or (isinstance(encoded, bytes) and len(encoded) > 2**14)


def encode_png(image: np.ndarray) -> bytes:
    """Return (C, H, W) uint8 pixels, one channel or three, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def _open(encoded: bytes | Path | None) -> Image.Image:
    """Return the decoded image in mode L or RGB."""
    if not encoded:
        raise BadImageError("no bytes")
    try:
        file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
            raise BadImageError("no plain file")  # a pipe would be waited for
        with Image.open(file, formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise BadImageError(f"{image.width} x {image.height} pixels, more than {limit}")
            image.load()
            return _plain(_upright(image))
    except BadImageError:
        raise
    except UnidentifiedImageError as error:  # whose text has the address of the bytes
        kinds = ", ".join(_FORMATS)
        raise BadImageError(f"no image file of a known kind ({kinds})") from error
    except Exception as error:  # a decoder fed with noise may raise anything
        raise BadImageError(f"{type(error).__name__}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    turned = image.getexif().get(_ORIENTATION_TAG, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def _plain(image: Image.Image) -> Image.Image:
    """Return ``image`` in mode L or RGB."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose black and white are unknown")
    if image.mode.startswith("I"):
        return _eight_bits(image)
    mode = "L" if image.mode in _GREY_MODES else "RGB"
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, colours).convert(mode)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit values, which are in 16 or 32 bits; by tiles, since it takes 24 bytes each."""
    narrow = np.empty((image.height, image.width), np.uint8)
    for top in range(0, image.height, _TILE):
        for left in range(0, image.width, _TILE):
            right, bottom = min(left + _TILE, image.width), min(top + _TILE, image.height)
            wide = np.asarray(image.crop((left, top, right, bottom))).astype(np.float64)
            narrow[top:bottom, left:right] = np.rint(wide.clip(0, 65535) / 257)
    return Image.fromarray(narrow)
