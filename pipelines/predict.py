"""Label images with the weights that a training has left."""

import argparse
import sys
from collections.abc import Sequence
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
import torch
from torch import nn
from tqdm import tqdm

from raykb.assembly import Supervised
from raykb.config import build
from raykb.data.atomic import whole_file
from raykb.data.decoding import BadImageError
from raykb.data.to_label import ImagesToLabel, decoded_as
from raykb.data.views import VIEWS, ImageView
from raykb.engine import checkpoint
from raykb.engine.foreign import parsed
from raykb.models import MODELS, SEQUENTIALS
from raykb.runtime.run_files import FINAL, TASK, config_file, config_of, final_weights
from raykb.runtime.secrets import redacted
from raykb.runtime.storage import Storage, check_new

_SHOWN = 10


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
    if "hardening" in config:
        raise ValueError(
            f"{folder.uri}/{file}: learnt which transformation an image wants, and labels nothing; "
            "name the classifier, in target/seed-0"
        )
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
        task = parsed(run.read(TASK))
        channels, height, width = task["shape"]
        return tuple(task["classes"]), (channels, height, width)
    try:
        opened = Supervised.opened(data)
    except (ValueError, OSError) as error:
        raise ValueError(f"the run's data, which name its classes: {error}") from error
    return opened.train.classes, opened.shape


# ---------------------------------------------------------------------- labelling


@torch.inference_mode()
def predict(
    classifier: Classifier, images: ImagesToLabel, *, batch_size: int, device: torch.device
) -> tuple[pd.DataFrame, list[str]]:
    """Return a row for each image, and what is wrong with those that cannot be decoded."""
    keys: list[int | str] = []
    labels: list[int | None] = []
    confidences: list[float | None] = []
    problems: list[str] = []
    with tqdm(total=images.count, unit=" images", desc="labelled") as progress:
        for names, encoded in images.batches(batch_size):
            decoded = decoded_as(encoded, classifier.shape)
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
        images = ImagesToLabel(given.images)
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
