"""What semi-supervised training and the labelling of images make of unusual files and settings."""

import os
import runpy
import types

import here
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import running
import torch

from raykb import config as configuration
from raykb.assembly import SemiSupervised
from raykb.config import ConfigError
from raykb.data.datasets import open_records
from raykb.data.decoding import encode_png
from raykb.data.download import refused
from raykb.data.labels import Labels
from raykb.data.options import Options
from raykb.data.parquet import write_shards
from raykb.data.sharded_images import ShardedImages
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import CropFlipView
from raykb.models import MODELS

CLASSES = ["cat", "dog", "eel"]
SAMPLE = str(running.PIPELINES.parent / "raykb" / "data" / "samples" / "fashion_mnist_test.parquet")


@pytest.fixture(scope="module")
def semi_train():
    return runpy.run_path(str(running.PIPELINES / "semi_train.py"))


@pytest.fixture(scope="module")
def predict():
    return runpy.run_path(str(running.PIPELINES / "predict.py"))


def picture(number, height=8, width=8):
    draw = np.random.default_rng(number)
    return encode_png(draw.integers(0, 256, (1, height, width), dtype=np.uint8))


# ---------------------------------------------------------------------- absent data


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion_mnist"])
def test_a_run_is_prepared_without_a_download_where_that_is_refused(semi_train, tmp_path, name):
    write_shards(tmp_path / "u", [(n, picture(n), 0) for n in range(8)], CLASSES)
    root = tmp_path / "absent"
    config = here.resolved(
        semi_train,
        running.PIPELINES / "configs" / "semi" / "fashion_mnist_sample.yaml",
        f"data={{name: {name}, root: {root}}}",
        f"unlabelled.paths={tmp_path / 'u'}",
    )
    with refused(), pytest.raises(ConfigError, match=rf"data: {name} is not.* a run downloads it"):
        semi_train["prepare"](config)
    assert not root.exists()


# ---------------------------------------------------------------------- true labels


def truths(path, **wanted):
    """Return the true labels of what is streamed, those of the training set, and what was said."""
    train, _, options = open_records("parquet", train=path, test=path, **wanted)
    examples = ShardedImages(paths=path)
    data = SemiSupervised(train, train, options, Labels(count=4), UnlabelledImages(), examples, [])
    said = []
    found = data.truths(said.append)
    return found, dict(zip(train.ids.tolist(), train.labels.tolist(), strict=True)), said


def test_true_labels_are_found_by_name_where_classes_are_renumbered(tmp_path):
    write_shards(tmp_path, [(number, picture(number), number % 3) for number in range(12)], CLASSES)
    found, known, said = truths(str(tmp_path), classes=["eel", "cat"])
    assert known == {number: (1, None, 0)[number % 3] for number in range(12) if number % 3 != 1}
    assert found == dict.fromkeys(range(12), -1) | known
    assert said == []


def test_true_labels_without_names_are_left_out_where_classes_are_renumbered(tmp_path):
    [path] = write_shards(tmp_path, [(n, picture(n), n % 2) for n in range(8)], CLASSES[:2])
    pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
    found, known, said = truths(str(path), classes=["1", "0"])
    assert found is None
    assert "the files of 'unlabelled' name none of these; pipelines/prepare_data.py" in said[0]
    found, known, said = truths(str(path))
    assert found == known == {number: number % 2 for number in range(8)}


def test_what_keeps_true_labels_away_is_said_with_its_facts(tmp_path):
    [path] = write_shards(tmp_path, [(n, picture(n), n % 2) for n in range(8)], CLASSES[:2])
    apes = types.SimpleNamespace(classes=("ape", "bee"))
    files = types.SimpleNamespace(files=[str(path)])
    data = SemiSupervised(apes, apes, Options(), Labels(count=4), UnlabelledImages(), files, [])
    said = []
    assert data.truths(said.append) is None
    assert "the names given, or those of the training set: ['ape', 'bee']" in said[0]
    assert f"{path}: ['cat', 'dog']" in said[0]


# ---------------------------------------------------------------------- the stream


def test_a_stream_without_paths_is_refused_but_for_the_embedded_sample(semi_train):
    data = f"data={{name: parquet, train: {SAMPLE}, test: {SAMPLE}}}"
    schema = here.schema_of(semi_train)
    config = configuration.load(semi_train["DEFAULT"], schema, smoke=True, overrides=[data])
    message = r"unlabelled\.paths: names no shards; .*it is parquet.*prepare_data\.py"
    with pytest.raises(ConfigError, match=message):
        semi_train["prepare"](config)


# ---------------------------------------------------------------------- labelling


def label(predict, images, height=8, width=8):
    """Return the labels by a network that was trained on images of so many pixels."""
    model = MODELS["small_convnet"](classes=2, channels=1, width=4).eval()
    view = CropFlipView(mean=[0.5], std=[0.5])
    classifier = predict["Classifier"](model, view, ("cat", "dog"), (1, height, width))
    given = predict["ImagesToLabel"](images)
    return predict["predict"](classifier, given, batch_size=2, device=torch.device("cpu"))


def test_images_of_the_trainings_size_are_labelled_though_it_is_no_square(predict, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0, 8, 12))
    (tmp_path / "b.png").write_bytes(picture(1, 12, 8))
    table, problems = label(predict, tmp_path, 8, 12)
    assert table["label"].notna().tolist() == [True, False]
    assert problems == [
        "path b.png: 12 x 8 pixels, must be 8 x 12 as in training, since only squares are made of "
        "other sizes; scale it"
    ]


def test_a_name_that_is_no_utf8_is_written_escaped(predict, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(picture(0))
    table, _ = label(predict, tmp_path)
    table.to_parquet(tmp_path / "labels")
    assert pd.read_parquet(tmp_path / "labels")["path"].tolist() == ["caf\\xe9.png"]


def test_hidden_files_are_neither_labelled_nor_taken_for_parquet(predict, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    for name in ("._a.png", "._a.parquet"):
        (tmp_path / name).write_bytes(b"not of ours")
    table, problems = label(predict, tmp_path)
    assert table["path"].tolist() == ["a.png"]
    assert problems == []
