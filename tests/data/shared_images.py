"""Small images whose pixels say which they are: in memory, and in shards of Parquet."""

import hashlib
import itertools

import numpy as np

from raykb.data.decoding import encode_png
from raykb.data.images import ImageSet
from raykb.data.parquet import write_shards

SIDE = 6


def picture(number, channels=1, side=SIDE):
    """Pixels that say which image it is."""
    draw = np.random.default_rng(number)
    return draw.integers(0, 256, (channels, side, side), dtype=np.uint8)


def write(folder, counts, *, broken=(), **form):
    """Write shards of so many images; ids are 10 times an image's number + 3."""
    numbers = itertools.count()
    for shard, count in enumerate(counts):
        rows = []
        for number in itertools.islice(numbers, count):
            file = b"no image" if number in broken else encode_png(picture(number, **form))
            rows.append((10 * number + 3, file, 0))
        [path] = write_shards(folder / "part", rows, ["a"])
        path.rename(folder / f"{shard:05d}.parquet")
    (folder / "part").rmdir()
    return str(folder)


def images(count=5):
    """Labelled images of 8 x 8 pixels; ids are 10 times the row."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    numbers = np.arange(count)
    return ImageSet(pixels, numbers % 3, 10 * numbers, ("a", "b", "c"))


def digest(arrays):
    """Return a short name of types, shapes and values."""
    made = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        made.update(f"{array.dtype}{array.shape}".encode())
        made.update(array.tobytes())
    return made.hexdigest()[:16]
