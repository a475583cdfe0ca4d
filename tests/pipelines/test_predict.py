"""Images labelled from the command line with the weights of a run."""

import functools
import io
import json
import runpy
import shutil

import here
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import running
import torch
from PIL import Image

from raykb.data.datasets import DATASETS
from raykb.data.views import CropFlipView
from raykb.models import MODELS

SCRIPT = running.PIPELINES / "predict.py"
CLASSES = [f"class {label}" for label in range(10)]
CONFIG = {
    "data": {"name": "fashion_mnist_sample", "test_size": 100},
    "view": {"name": "crop_flip", "mean": [0.286], "std": [0.353]},
    "model": {"name": "small_convnet", "width": 4},
}


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@functools.cache
def sample():
    return DATASETS["fashion_mnist_sample"](train_size=10, test_size=100)[1]


def make_run(directory, *, trainings=("fixmatch/seed-0",), task=True):
    """Write what a run leaves, with weights as they are drawn."""
    torch.manual_seed(0)
    model = MODELS["small_convnet"](classes=10, channels=1, width=4)
    for name in trainings:
        (directory / name).mkdir(parents=True)
        torch.save(model.state_dict(), directory / name / "final.pt")
    (directory / "run.json").write_text(json.dumps({"config": CONFIG}))
    if task:
        record = {"schema": 1, "classes": CLASSES, "shape": [1, 28, 28]}
        (directory / "task.json").write_text(json.dumps(record))
    return model.eval()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def expected(model):
    view = CropFlipView(mean=[0.286], std=[0.353])
    with torch.no_grad():
        shares = model(view.plain(torch.from_numpy(sample().images))).softmax(1)
    return shares.max(1)


def test_a_parquet_file_gets_the_labels_that_the_network_gives(script, tmp_path, capsys):
    model = make_run(tmp_path / "run")
    images = sample()
    files = [png(image[0]) for image in images.images]
    table = {"id": images.ids, "image": files, "label": images.labels}
    pq.write_table(pa.table(table), tmp_path / "images.parquet")
    out = tmp_path / "labels.parquet"
    arguments = [str(tmp_path / "run"), str(tmp_path / "images.parquet"), "--out", str(out)]
    script["main"]([*arguments, "--batch-size", "32"])
    labelled = pd.read_parquet(out)
    highest, labels = expected(model)
    assert list(labelled.columns) == ["id", "label", "class", "confidence"]
    assert labelled["id"].tolist() == images.ids.tolist()
    assert labelled["label"].tolist() == labels.tolist()
    assert labelled["class"].tolist() == [CLASSES[label] for label in labels]
    np.testing.assert_allclose(labelled["confidence"].astype(float), highest, rtol=1e-5)
    assert "100 rows, mean confidence" in capsys.readouterr().out


def test_a_folder_gets_labels_by_path_and_what_is_broken_has_none(script, tmp_path, capsys):
    model = make_run(tmp_path / "run")
    folder = tmp_path / "photos"
    (folder / "inner" / "folder.png").mkdir(parents=True)
    pixels = sample().images[0, 0]
    colour = np.repeat(pixels[:, :, None], 3, 2)
    (folder / "a.png").write_bytes(png(pixels))
    (folder / "inner" / "b.png").write_bytes(png(colour))
    (folder / "inner" / "c.png").write_bytes(png(np.kron(pixels, np.ones((2, 2), np.uint8))))
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    out = tmp_path / "labels.csv"
    run = str(tmp_path / "run" / "fixmatch" / "seed-0" / "final.pt")
    script["main"]([run, str(folder), "--out", str(out), "--device", "cpu"])
    labelled = pd.read_csv(out).set_index("path")
    assert list(labelled.index) == ["a.png", "broken.png", "inner/b.png", "inner/c.png"]
    label = int(expected(model)[1][0])
    assert labelled.loc["a.png", "label"] == labelled.loc["inner/b.png", "label"] == label
    assert labelled.loc["inner/c.png"].notna().all()
    assert labelled.loc["broken.png"].isna().all()
    errors = capsys.readouterr().err
    assert "not decoded: path broken.png" in errors
    assert "1 images cannot be decoded and have no label" in errors


def test_a_run_that_names_no_classes_is_asked_for_its_data(script, tmp_path):
    make_run(tmp_path / "run", task=False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(sample().images[0, 0]))
    out = tmp_path / "labels.csv"
    script["main"]([str(tmp_path / "run"), str(tmp_path / "photos"), "--out", str(out)])
    assert pd.read_csv(out)["class"][0] in sample().classes


def test_a_rival_of_a_comparison_over_networks_is_labelled_by_as_what_it_was_trained(
    script, tmp_path
):
    semi_train = runpy.run_path(str(running.PIPELINES / "semi_train.py"))
    config = here.resolved(
        semi_train,
        running.PIPELINES / "configs" / "semi" / "fashion_mnist_sample.yaml",
        "stream={name: in_place}",
        "recipe.steps=1",
        "comparison={over: model, rivals: {slim: {name: small_convnet, width: 4}}}",
    )
    run = tmp_path / "run"
    here.run(semi_train, "semi_train", config, run)
    (run / "run.json").write_text(json.dumps({"config": config}))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(sample().images[0, 0]))
    for name, width in (("slim", 4), ("small_convnet", 16)):
        training, out = run / name / "seed-0", tmp_path / f"{name}.csv"
        script["main"]([str(training), str(tmp_path / "photos"), "--out", str(out)])
        model = MODELS["small_convnet"](classes=10, channels=1, width=width).eval()
        model.load_state_dict(torch.load(training / "final.pt", weights_only=True))
        labelled = pd.read_csv(out)
        highest, labels = expected(model)
        assert labelled["label"][0] == int(labels[0])
        assert labelled["confidence"][0] == pytest.approx(float(highest[0]), rel=1e-5)


def refused(script, capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        script["main"]([str(argument) for argument in arguments])
    return str(stopped.value.code) + capsys.readouterr().err


def test_what_cannot_be_done_is_said_in_one_line(script, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out.csv"
    make_run(run, trainings=("fixmatch/seed-0", "uda/seed-0"))
    photos = tmp_path / "photos"
    photos.mkdir()
    said = functools.partial(refused, script, capsys)
    assert "holds no image" in said(run, photos, "--out", out)
    (photos / "a.png").write_bytes(b"no image")
    text = said(run, photos, "--out", out)
    assert "2 trainings have left a final.pt; name one of" in text
    assert "fixmatch/seed-0" in text
    one = run / "uda" / "seed-0"
    assert "none of 1 images can be decoded, as path a.png" in said(one, photos, "--out", out)
    assert "is not there; name a folder" in said(one, tmp_path / "none", "--out", out)
    assert "no run.json in it or above it" in said(tmp_path, photos, "--out", out)
    assert "its folder is not there" in said(one, photos, "--out", tmp_path / "no" / "out.csv")
    assert "must end in .parquet or .csv" in said(one, photos, "--out", tmp_path / "out.txt")
    assert "--batch-size 0: must be at least 1" in said(
        one, photos, "--out", out, "--batch-size", 0
    )
    out.touch()
    assert "is there already" in said(one, photos, "--out", out)
    shutil.rmtree(run / "uda")
    shutil.rmtree(run / "fixmatch")
    out.unlink()
    assert "0 trainings have left a final.pt; let the run end" in said(run, photos, "--out", out)
    table = pa.table({"id": [1], "label": [0]})
    pq.write_table(table, tmp_path / "labels.parquet")
    assert "column 'image' is missing" in said(one, tmp_path / "labels.parquet", "--out", out)
    table = pa.table({"id": [2**62, None], "image": [b"a", b"b"]})
    pq.write_table(table, tmp_path / "nameless.parquet")
    assert "column 'id' has empty cells" in said(one, tmp_path / "nameless.parquet", "--out", out)
    assert "--device gpu: " in said(one, photos, "--out", out, "--device", "gpu")
    pq.write_table(table, photos / "labels.parquet")
    assert "holds Parquet files and image files" in said(one, photos, "--out", out)


def test_what_predicts_losses_of_transformations_is_refused_with_the_classifier_beside_it(
    script, tmp_path, capsys
):
    run, photos = tmp_path / "run", tmp_path / "photos"
    make_run(run, trainings=("extra_four/seed-0", "target/seed-0"))
    (run / "extra_four/seed-0/config.json").write_text(
        json.dumps(CONFIG | {"hardening": {"name": "extra_four"}})
    )
    photos.mkdir()
    (photos / "a.png").write_bytes(png(sample().images[0, 0]))
    text = refused(script, capsys, run / "extra_four/seed-0", photos, "--out", tmp_path / "a.csv")
    assert "labels nothing; name the classifier, in target/seed-0" in text
    script["main"]([str(run / "target/seed-0"), str(photos), "--out", str(tmp_path / "a.csv")])
    assert (tmp_path / "a.csv").exists()


def test_no_password_of_a_uri_is_shown(script, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(sample().images[0, 0]))
    run = "ftp://me:abc@host/run"
    text = refused(script, capsys, run, tmp_path / "photos", "--out", tmp_path / "out.csv")
    assert "ftp://***@host/run" in text
    assert "abc" not in text


def test_weights_of_another_model_are_refused(script, tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(sample().images[0, 0]))
    config = CONFIG | {"model": {"name": "small_convnet", "width": 8}}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": config}))
    arguments = (tmp_path / "run", tmp_path / "photos", "--out", tmp_path / "out.csv")
    assert "final.pt: is not of the model in run.json" in refused(script, capsys, *arguments)
    own = tmp_path / "run" / "fixmatch" / "seed-0" / "config.json"
    own.write_text(json.dumps(config))
    assert "final.pt: is not of the model in config.json" in refused(script, capsys, *arguments)
    own.write_text(json.dumps({"data": {}, "view": {}}))
    assert f"{own}: has no 'model', so" in refused(script, capsys, *arguments)
    own.write_text(json.dumps(CONFIG | {"linear_probe": {}}))
    assert "trained no classifier on it" in refused(script, capsys, *arguments)
    own.write_text(json.dumps(CONFIG | {"captions": {}}))
    assert "learnt from captions, and trained no classifier" in refused(script, capsys, *arguments)


@pytest.mark.parametrize("name", ["final.pt", "run.json"])
@pytest.mark.parametrize("data", [b"", b"hello", b"{}"])
def test_a_spoilt_file_of_the_run_is_named(script, tmp_path, capsys, name, data):
    make_run(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(sample().images[0, 0]))
    next((tmp_path / "run").rglob(name)).write_bytes(data)
    arguments = (tmp_path / "run", tmp_path / "photos", "--out", tmp_path / "out.csv")
    assert f"{name}: " in refused(script, capsys, *arguments)


def test_its_help_says_what_it_takes_and_makes(script, capsys):
    with pytest.raises(SystemExit):
        script["main"](["--help"])
    text = capsys.readouterr().out
    for part in ("run directory", "columns 'id'", "confidence", "examples:"):
        assert part in text
