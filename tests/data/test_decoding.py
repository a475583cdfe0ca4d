import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from raykb.data.decoding import BadImageError, decode, decode_all, encode_png

NOISE = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)  # (H, W, C)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_of_an_image_decodes_to_the_same_image():
    colour = NOISE.transpose(2, 0, 1)
    assert np.array_equal(decode(encode_png(colour)), colour)
    assert np.array_equal(decode(encode_png(colour[:1])), colour[:1])


def test_bytes_path_and_pixels_decode_alike(tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_bytes(file_of(Image.fromarray(NOISE)))
    for encoded in (path, path.read_bytes(), NOISE):
        assert np.array_equal(decode(encoded), NOISE.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize(("channels", "expected"), [(1, 1), (3, 3)])
def test_every_mode_becomes_the_channels_asked_for(mode: str, channels: int, expected: int):
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    grey = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    image = grey if mode == "I;16" else Image.fromarray(NOISE).convert(mode)
    assert decode(file_of(image, kind), channels=channels).shape == (expected, 8, 6)


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3), ("CMYK", 3)])
def test_without_channels_grey_has_one_and_colour_three(mode: str, channels: int):
    image = Image.fromarray(NOISE).convert(mode)
    assert len(decode(file_of(image, "TIFF" if mode == "CMYK" else "PNG"))) == channels


def test_colour_becomes_luminance_and_grey_is_repeated():
    red, green, blue = NOISE.astype(np.int64).transpose(2, 0, 1)
    luminance = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    assert np.array_equal(decode(NOISE, channels=1)[0], luminance)
    grey = NOISE[..., 0]
    assert np.array_equal(decode(grey, channels=3), np.stack([grey] * 3))


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 127, 257 * 100, 257 * 100 + 129, 65535]], np.uint16)
    assert decode(file_of(Image.fromarray(values)))[0, 0].tolist() == [0, 0, 100, 101, 255]


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I"])
@pytest.mark.parametrize("size", [(1, 1), (256, 7), (3, 520), (300, 300)])
def test_sixteen_bits_are_scaled_alike_everywhere(kind: str, size: tuple[int, int]):
    rng = np.random.default_rng(0)
    values = rng.integers(*((-9, 2**17) if kind == "I" else (0, 2**16)), size, dtype=np.int64)
    stored = values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[kind])
    image = Image.frombytes(kind, size[::-1], stored.tobytes())
    expected = np.rint(values.astype(np.float64).clip(0, 65535) / 257).astype(np.uint8)
    assert np.array_equal(decode(file_of(image, "TIFF"))[0], expected)


@pytest.mark.parametrize("size", [(1024, 512), (1, 2**18)])
def test_sixteen_bits_take_few_bytes_a_pixel(size: tuple[int, int]):
    encoded = file_of(Image.fromarray(np.zeros(size, np.uint16)), "PNG")
    tracemalloc.start()
    try:
        decode(encoded)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / np.prod(size) < 6  # one row is Pillow's smallest piece of a file


def test_transparency_shows_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    half = Image.new("LA", (2, 2), (0, 128))
    palette = Image.new("P", (2, 2), 0)
    assert (decode(file_of(clear)) == 255).all()
    assert (decode(file_of(half)) == 127).all()
    assert (decode(file_of(palette, transparency=0)) == 255).all()
    assert (decode(file_of(Image.new("L", (2, 2), 9), transparency=9)) == 255).all()


def test_exif_orientation_is_applied():
    image = Image.fromarray(NOISE)
    exif = image.getexif()
    exif[0x0112] = 6  # the top of the scene is at the right of the file
    turned = decode(file_of(image, exif=exif))
    assert np.array_equal(turned, np.rot90(NOISE, -1).transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (1, 1), (30, 7)])
def test_image_size_covers_the_square_and_cuts_its_centre(shape: tuple[int, int]):
    assert decode(np.zeros((*shape, 3), np.uint8), image_size=5).shape == (3, 5, 5)


def test_the_centre_is_what_remains():
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200
    assert (decode(wide, image_size=4) == 200).all()


def test_an_image_of_the_size_asked_for_is_left_alone():
    square = NOISE[:6]
    assert np.array_equal(decode(square, image_size=6), square.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (None, "no bytes"),
        (b"", "no bytes"),
        (b"\x89PNG no image follows", "no image file of a known kind"),
        (file_of(Image.fromarray(NOISE))[:-40], "OSError|SyntaxError"),
        (Path("nowhere.png"), "FileNotFoundError"),
        (file_of(Image.new("F", (2, 2)), "TIFF"), "floating-point"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(encoded: bytes | Path | None, reason: str):
    with pytest.raises(BadImageError, match=reason):
        decode(encoded)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 2 2
%%EndComments
(out) (w) file closefile
%%EOF
"""


def test_a_file_that_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given: ran.append(given))
    (tmp_path / "image.png").write_bytes(EPS)
    for encoded in (EPS, tmp_path / "image.png"):
        with pytest.raises(
            BadImageError, match=r"of a known kind \(BMP, GIF, JPEG, PPM, PNG, TIFF"
        ):
            decode(encoded)
    assert not ran


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "MPO", "PPM", "TIFF", "WEBP", "JPEG2000"])
def test_files_of_pixels_are_read(kind: str):
    image = Image.new("RGB", (8, 6), (255, 0, 255))
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    decoded = decode(file_of(image, kind, **more), channels=3)
    assert decoded.shape == (3, 6, 8)
    assert np.abs(decoded.mean((1, 2)) - [255, 0, 255]).max() < 3


def test_an_image_cut_anywhere_is_refused_or_whole():
    whole = encode_png(NOISE.transpose(2, 0, 1))
    for length in range(len(whole)):
        try:
            decoded = decode(whole[:length])
        except BadImageError:
            continue
        assert np.array_equal(decoded, NOISE.transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore")  # else Pillow's warning would be the refusal
@pytest.mark.parametrize("limit", [40, 20])  # Pillow itself warns above one limit, raises above two
def test_a_decompression_bomb_is_refused(limit: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadImageError, match=r"48 pixels|8 x 6|6 x 8"):
        decode(file_of(Image.fromarray(NOISE)))


@pytest.mark.parametrize("size", [8, 150])  # few bytes are decoded in line, many in threads
def test_decode_all_keeps_the_order_and_returns_the_failures(size: int):
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (3, size, size), dtype=np.uint8) for _ in range(60)]
    encoded: list[bytes | None] = [encode_png(image) for image in images]
    encoded[7] = None
    decoded = decode_all(encoded, image_size=size, channels=3)
    assert isinstance(decoded[7], BadImageError)
    for image, result in zip(images[8:], decoded[8:], strict=True):
        assert isinstance(result, np.ndarray)
        assert np.array_equal(result, image)
