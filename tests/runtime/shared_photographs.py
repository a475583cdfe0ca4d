"""Photographs to stream: crops of those that scikit-learn and matplotlib carry."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from raykb.data.parquet import write_shards


def crops(count, side=96, form="JPEG", seed=0):
    """Yield ``count`` files of colour images of ``side`` pixels."""
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photographs = [*load_sample_images().images, np.asarray(Image.open(hopper).convert("RGB"))]
    draw = np.random.default_rng(seed)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        zoom = int(side * draw.uniform(1.0, 3.0))
        top, left = (int(draw.integers(0, size - zoom)) for size in photograph.shape[:2])
        crop = Image.fromarray(photograph[top : top + zoom, left : left + zoom])
        file = io.BytesIO()
        crop.resize((side, side)).save(file, form)
        yield file.getvalue()


def write_photographs(folder, count, files=1, **how):
    """Write ``count`` crops as so many Parquet files; an image's id is 3 times its number + 1."""
    images = list(crops(count, **how))
    each = -(-count // files)
    for number in range(files):
        numbers = range(number * each, min((number + 1) * each, count))
        rows = [(3 * i + 1, images[i], 0) for i in numbers]
        [written] = write_shards(folder / "part", rows, ["photograph"])
        written.rename(folder / f"{number:05d}.parquet")
    (folder / "part").rmdir()
    return folder
