"""Label images with the weights that a training has left."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

USAGE = """
RUN is a run directory, the folder of one of its trainings if there are several, or a final.pt in
there: a path or a URI. The network, the normalisation and the classes are those of the run. Images
are brought to the size that it was trained on (scaled to cover it, the centre cut out; where it is
no square they must have it) and to its number of channels.

IMAGES is a folder of image files, with all folders in it (but not links to others), or Parquet: a
file with the columns 'id' and 'image' (the bytes of an image file), or a folder of such files.

FILE has a row for each image, in the order of names or rows:
  path or id    which image: its path below IMAGES, or the id of its row
  label         number of the class, empty where the image cannot be decoded
  class         its name
  confidence    probability that the network gives it

examples:
  predict.py runs/semi_train-20261121-101500 photos --out labels.csv
  predict.py runs/comparison/fixmatch/seed-0 datasets/cifar10/test --out labels.parquet
  predict.py s3://bucket/run/fixmatch/seed-0/final.pt unlabelled.parquet --out labels.parquet
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python pipelines/predict.py",
        description=__doc__,
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="what was trained; see below")
    add("images", metavar="IMAGES", type=Path, help="what to label; see below")
    add(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="file to make, .parquet or .csv; must not be there",
    )
    add(
        "--batch-size",
        type=int,
        default=256,
        metavar="N",
        help="images of one forward pass (default: %(default)s)",
    )
    add("--device", help="cpu or cuda (default: cuda where there is a GPU)")
    given = parser.parse_args(arguments)
    if given.batch_size < 1:
        parser.error(f"--batch-size {given.batch_size}: must be at least 1")
    if given.out.suffix not in (".parquet", ".csv"):
        parser.error(f"--out {given.out}: must end in .parquet or .csv")
    return given


if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    parse(None)  # --help, before the imports below take their seconds

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import nn
from tqdm import tqdm

from raykb.assembly import Supervised
from raykb.config import build
from raykb.data.decoding import BadImageError, Encoded, decode_all
from raykb.data.folder import image_files
from raykb.data.parquet import (
    check_schema,
    named_errors,
    parquet_files,
    parquet_in,
    whole_numbers,
)
from raykb.data.views import VIEWS, ImageView
from raykb.engine import checkpoint
from raykb.models import MODELS, SEQUENTIALS
from raykb.runtime.run_files import FINAL, TASK, config_file, config_of, final_weights
from raykb.runtime.secrets import redacted
from raykb.runtime.storage import Storage, check_new, whole_file

_SHOWN = 10

Batch = tuple[Sequence[int | str], list[Encoded]]
"""Ids or paths of some images, and these."""


@dataclass
class Classifier:
    """A trained network and what it has to be told of images.

    Attributes:
        model: in evaluation mode.
        view: its plain form is what the network takes.
        classes: their names.
        shape: (C, H, W) of the images that it was trained on.
    """

    model: nn.Module
    view: ImageView
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


def device_of(name: str | None) -> torch.device:
    """Return the device ``name``, by default the fastest; raise ValueError where there is none."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter by a torch without CUDA
        raise ValueError(f"--device {name}: {error}; use cpu, or cuda with a GPU") from error


# ---------------------------------------------------------------------- what was trained


def read_classifier(run: Storage, training: Storage, device: torch.device) -> Classifier:
    """Return the network of a training as its configuration describes it.

    Raises:
        ValueError: the configuration or the data cannot be read, or weights and model do not fit.
    """
    config = config_of(run, training)
    folder, file = config_file(run, training)
    if missing := [part for part in ("model", "view", "data") if part not in config]:
        raise ValueError(f"{folder.uri}/{file}: has no {missing[0]!r}, so it trained no classifier")
    if "linear_probe" in config:
        raise ValueError(f"{folder.uri}/{file}: learnt a backbone, and trained no classifier on it")
    if "captions" in config:
        raise ValueError(
            f"{folder.uri}/{file}: learnt from captions, and trained no classifier; how well it "
            "tells classes apart by their names is test/prompts/top1 of its result.json"
        )
    classes, shape = task_of(run, config["data"])
    model: nn.Module = build(
        {**SEQUENTIALS, **MODELS}, config["model"], classes=len(classes), channels=shape[0]
    )
    try:
        state = checkpoint.decode(training.read(FINAL))
    except Exception as error:  # torch may raise anything on what it has not written
        raise ValueError(
            f"{training.uri}/{FINAL}: cannot be read as weights ({type(error).__name__}); copy it "
            "anew from where the run left it"
        ) from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{training.uri}/{FINAL}: is not of the model in {file}: {error}"
        ) from error
    view: ImageView = build(VIEWS, config["view"])
    return Classifier(model.to(device).eval(), view, classes, shape)


def task_of(run: Storage, data: dict[str, object]) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """Return the classes of a run and the shape of its images, from its files or from its data."""
    if run.exists(TASK):
        task = json.loads(run.read(TASK))
        channels, height, width = task["shape"]
        return tuple(task["classes"]), (channels, height, width)
    try:
        opened = Supervised.opened(data)
    except (ValueError, OSError) as error:
        raise ValueError(f"the run's data, which name its classes: {error}") from error
    return opened.train.classes, opened.shape


# ---------------------------------------------------------------------- what is labelled


class Images:
    """Images to be labelled, a batch at a time.

    Args:
        where: a folder of image files, a Parquet file, or a folder of these.

    Attributes:
        key: what names an image: ``path`` or ``id``.
        count: how many there are.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is both, or a Parquet file is not of this layout.
    """

    def __init__(self, where: Path) -> None:
        if not where.exists():
            raise FileNotFoundError(f"{where}: is not there; name a folder or a Parquet file")
        self._where, self._paths = where, list[Path]()
        self.key = "id" if where.is_file() or any(parquet_in(where)) else "path"
        if self.key == "id":
            if where.is_dir() and image_files(where):
                raise ValueError(
                    f"{where}: holds Parquet files and image files; give each a folder of their own"
                )
            self._files = parquet_files([str(where)])
            self.count = sum(map(_rows, self._files))
        else:
            self._paths = image_files(where)
            self.count = len(self._paths)
        if not self.count:
            raise FileNotFoundError(
                f"{where}: holds no image; there must be image files or *.parquet files in it"
            )

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the images in order, ``size`` at a time."""
        if self.key == "path":
            for first in range(0, self.count, size):
                some = self._paths[first : first + size]
                yield [_text(path.relative_to(self._where)) for path in some], list(some)
            return
        for path in self._files:
            with named_errors(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                for rows in file.iter_batches(size, columns=["id", "image"]):
                    yield rows.column("id").to_pylist(), rows.column("image").to_pylist()


def _text(path: Path) -> str:
    """Return a path as text that can be written: bytes that are no UTF-8 stand there escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _rows(path: Path) -> int:
    with named_errors(path):
        schema = pq.read_schema(path)
    check_schema(path, schema, ("id", "image"))
    with named_errors(path):
        ids = pq.read_table(path, columns=["id"], page_checksum_verification=True)
    return len(whole_numbers(path, ids, "id"))


# ---------------------------------------------------------------------- labelling


@torch.inference_mode()
def predict(
    classifier: Classifier, images: Images, *, batch_size: int, device: torch.device
) -> tuple[pd.DataFrame, list[str]]:
    """Return a row for each image, and what is wrong with those that cannot be decoded."""
    keys: list[int | str] = []
    labels: list[int | None] = []
    confidences: list[float | None] = []
    problems: list[str] = []
    with tqdm(total=images.count, unit=" images", desc="labelled") as progress:
        for names, encoded in images.batches(batch_size):
            decoded = _decoded(encoded, classifier.shape)
            good = [image for image in decoded if not isinstance(image, BadImageError)]
            found = iter(_believed(classifier, good, device))
            for name, image in zip(names, decoded, strict=True):
                keys.append(name)
                bad = isinstance(image, BadImageError)
                label, confidence = (None, None) if bad else next(found)
                labels.append(label)
                confidences.append(confidence)
                if bad:
                    problems.append(f"{images.key} {name}: {image}")
            progress.update(len(names))
    named = [None if label is None else classifier.classes[label] for label in labels]
    columns = {
        images.key: keys,
        "label": pd.array(labels, dtype="Int64"),
        "class": named,
        "confidence": pd.array(confidences, dtype="Float64"),
    }
    return pd.DataFrame(columns), problems


def _decoded(
    encoded: Sequence[Encoded], shape: tuple[int, int, int]
) -> list[np.ndarray | BadImageError]:
    """Return each image in the shape (C, H, W) that a network takes, or why it cannot be used."""
    channels, height, width = shape
    side = height if height == width else None
    return [
        image
        if isinstance(image, BadImageError) or image.shape == shape
        else BadImageError(
            f"{image.shape[1]} x {image.shape[2]} pixels, must be {height} x {width} as in "
            "training, since only squares are made of other sizes; scale it"
        )
        for image in decode_all(encoded, image_size=side, channels=channels)
    ]


def _believed(
    classifier: Classifier, images: Sequence[np.ndarray], device: torch.device
) -> list[tuple[int, float]]:
    """Return the likeliest class of each image, and its probability."""
    if not images:
        return []
    pixels = torch.from_numpy(np.stack(images)).to(device)
    shares = classifier.model(classifier.view.plain(pixels)).float().softmax(1)
    highest, labels = shares.max(1)
    return list(zip(labels.tolist(), highest.tolist(), strict=True))


def main(arguments: list[str] | None = None) -> None:
    """Label, and say how many images of each class were found."""
    given = parse(arguments)
    try:
        check_new(given.out)
        device = device_of(given.device)
        images = Images(given.images)
        classifier = read_classifier(*final_weights(given.run), device)
        table, problems = predict(classifier, images, batch_size=given.batch_size, device=device)
        if len(problems) == len(table):
            raise ValueError(f"none of {len(table)} images can be decoded, as {problems[0]}")
        save = table.to_csv if given.out.suffix == ".csv" else table.to_parquet
        with whole_file(given.out) as file:
            save(file, index=False)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(redacted(f"error: {error}"))
    for problem in problems[:_SHOWN]:
        print(redacted(f"not decoded: {problem}"), file=sys.stderr)
    if problems:
        print(f"{len(problems)} images cannot be decoded and have no label", file=sys.stderr)
    counts = table["class"].value_counts()
    for name in classifier.classes:
        if name in counts:
            print(f"{name:24} {counts[name]:8,}")
    print(f"{given.out}: {len(table):,} rows, mean confidence {table['confidence'].mean():.3f}")


if __name__ == "__main__":
    main()
