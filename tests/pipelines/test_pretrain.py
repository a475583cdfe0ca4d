"""Pretraining as its users run it: refused, to its end on Ray, and gone on with."""

import functools
import json
import runpy
from types import SimpleNamespace

import here
import in_process
import numpy as np
import pytest
import running
import torch
import torchvision
from databases import new_database

from raykb.config import ConfigError
from raykb.data.decoding import encode_png
from raykb.data.images import ImageSet
from raykb.data.parquet import write_shards
from raykb.runtime.session import Refused

pytestmark = [
    pytest.mark.timeout(2 * running.LIMIT_S),
    # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]

DEFAULT = running.PIPELINES / "configs" / "selfsup" / "fashion_mnist_sample.yaml"
run = functools.partial(in_process.run, "pretrain")


@pytest.fixture(scope="module")
def script():
    """The script as a module, so that what it refuses costs no new process."""
    return runpy.run_path(str(running.PIPELINES / "pretrain.py"))


def others(folder, count=60):
    """Return the folder of images without labels, the tenth of which is broken."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)
    rows = [(n, encode_png(image), 0) for n, image in enumerate(pixels)]
    rows[10] = (10, b"no image", 0)
    write_shards(folder, rows, ["one"])
    return folder


def prepared(script, *overrides):
    return script["prepare"](here.resolved(script, DEFAULT, *overrides))


def labels(ready, script, *overrides):
    config = here.resolved(script, DEFAULT, *overrides)
    return [entry.name for entry in ready.comparison.trainings(config)]


# ---------------------------------------------------------------------- what is compared


def test_initial_weights_stand_beside_the_methods_once_for_each_seed(script):
    ready = prepared(script)
    names = ["random", "byol", "simclr"]
    wanted = [f"{name}/seed-{seed}" for seed in (0, 1) for name in names]
    assert labels(ready, script) == wanted
    assert ready.phases[0].units == 6


def test_where_networks_are_compared_each_has_initial_weights_of_its_own(script):
    wide = "{over: model, rivals: {wide: {name: small_convnet, width: 24}}, seeds: 1}"
    given = f"comparison={wide}"
    ready = prepared(script, given)
    assert labels(ready, script, given) == [
        f"{name}/seed-0"
        for name in ("random_wide", "random_small_convnet", "wide", "small_convnet")
    ]
    entries = ready.comparison.entries(here.resolved(script, DEFAULT, given))
    assert entries["random_wide"]["model"]["width"] == 24


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("comparison.rivals={random: {name: byol}}", "'random' is a word of the run's own"),
        (
            "as_they_are.weights={byol: ResNet18_Weights.DEFAULT}",
            "'byol' is a word of the run's own",
        ),
        ("as_they_are.weights={mine: none.pt}", "as_they_are.weights.mine: none.pt: no file"),
        ("as_they_are.models={mine: {name: small_convnet}}", "models: .'mine'. have no weights"),
        (
            "comparison={over: data, rivals: {few: {name: fashion_mnist_sample, train_size: 60}}}",
            "comparison.over: 'data' is read once for all trainings",
        ),
        (
            "comparison={over: evaluate, rivals: {other: {at_end: [retrieval]}}}",
            "comparison.rivals.other: would be told by other figures",
        ),
        ("evaluate.at_end=[knn, probe]", "evaluate.at_end: .*must be a list of some of"),
        ("method.temperature=0", r"method.temperature: 0.0, must be above 0"),
        ("unlabelled.paths=nowhere", "unlabelled: .*nowhere"),
        ("crops.scale=[0.5, 2.0]", r"crops\S*: .*must be \(least, greatest\)"),
        ("knn.neighbours=0", "knn.*neighbours: 0, must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(script, given, told):
    with pytest.raises(ConfigError, match=told):
        prepared(script, given)


def test_other_images_than_a_run_began_with_are_refused(script, tmp_path):
    config = here.resolved(script, DEFAULT)
    session, ready = here.session(tmp_path, config), script["prepare"](config)
    session.keep("stream.json", json.dumps({"schema": 1, "images": 7, "digest": "x"}))
    with pytest.raises(Refused, match=r"unlabelled.paths: .* where the run began with"):
        script["pretrain"](session, ready)


# ---------------------------------------------------------------------- as they are


def test_backbones_stand_as_they_are_beside_the_others_and_what_is_absent_is_a_gap(
    script, tmp_path, capsys, monkeypatch
):
    few = "comparison={seeds: 1, rivals: {}}"
    here.run(script, "pretrain", here.resolved(script, DEFAULT, few), tmp_path / "first")
    final = tmp_path / "first" / "simclr" / "seed-0" / "final.pt"

    def refuse(self, **options):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", refuse)
    given = f"as_they_are.weights={{mine: {final}, imagenet: ResNet18_Weights.DEFAULT}}"
    config = here.resolved(script, DEFAULT, few, given)
    here.run(script, "pretrain", config, tmp_path / "second")
    results = json.loads((tmp_path / "second" / "results.json").read_text())
    rows = {row["label"]: row for row in results["results"]}
    assert rows.keys() == {"random", "mine", "simclr"}
    for metric in ("test/linear_probe/top1", "test/knn/top1", "test/spread"):
        assert rows["mine"][metric] == rows["simclr"][metric]
    assert rows["mine"]["steps"] == 0
    assert results["missing"] == ["imagenet/seed-0"]
    assert "imagenet: left out: " in capsys.readouterr().err


# ---------------------------------------------------------------------- what is said


def test_a_run_that_collapsed_says_so(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(script["tell_results"].__globals__, "COLLAPSED", 1.0)
    config = here.resolved(script, DEFAULT, "comparison={seeds: 1, rivals: {}}")
    here.run(script, "pretrain", config, tmp_path)
    said = capsys.readouterr().err
    assert "simclr/seed-0 has collapsed: its features say nearly the same of all images" in said


def test_a_run_that_asks_no_protocol_tells_the_spread_of_features(script, tmp_path):
    given = ("comparison={seeds: 1, rivals: {}}", "evaluate={at_end: [], on_the_way: []}")
    here.run(script, "pretrain", here.resolved(script, DEFAULT, *given), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["tables"].keys() == {"test/spread"}
    assert results["missing"] == []


def test_what_localisation_finds_is_drawn_on_the_scenes_that_it_was_asked_about(script):
    config = here.resolved(script, DEFAULT, "localisation={canvas: 3.0, test_scenes: 2}")
    pixels = np.full((5, 1, 28, 28), 9, np.uint8)
    test = ImageSet(pixels, np.arange(5), np.arange(5), tuple("abcde"))
    found = {"seed": 3, "boxes": [[0.0, 0.0, 0.5, 0.5]] * 2, "labels": [1, 2]}
    told = SimpleNamespace(label="byol", details={"localisation": found})
    pictures = script["pictures"](config, told, test, test)
    assert pictures.keys() == {"localisation"}
    assert [image.get_array().shape for image in pictures["localisation"].axes[0].images] == [
        (84, 84)
    ] * 2


# ---------------------------------------------------------------------- on Ray


slow = pytest.mark.slow  # twenty seconds; what it is made of is tested in this process


@pytest.fixture(scope="module")
def whole(warm_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    new_database(folder)
    given = ["--smoke", f"--set=unlabelled.paths={others(folder / 'others')}"]
    given += ["--set=comparison={seeds: 1, rivals: {}}", "--set=recipe.batch_size=10"]
    return folder, given, run(folder, *given, "--out", "run")


@slow
def test_a_stream_of_other_images_ends_with_weights_tables_and_pictures(whole):
    folder, _, done = whole
    directory = folder / "run"
    results = json.loads((directory / "results.json").read_text())
    assert [row["label"] for row in results["results"]] == ["random", "simclr"]
    assert results["tables"].keys() == {"test/linear_probe/top1", "test/knn/top1"}
    for name in ("probe.png", "neighbours_random.png", "neighbours_simclr.png", "comparison.png"):
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
    assert "60 images without labels; 6 steps of 10" in done.stderr
    assert "broken_images.txt names them" in done.stderr
    random, trained = (
        torch.load(directory / label / "seed-0" / "final.pt", weights_only=True)
        for label in ("random", "simclr")
    )
    assert random.keys() == trained.keys()
    same = [name for name in random if torch.equal(random[name], trained[name])]
    last = max(int(name.split(".")[0]) for name in random)
    assert same == [f"{last}.weight", f"{last}.bias"]  # the classifier, which nobody trained


@slow
def test_a_run_that_goes_on_redoes_no_training(whole):
    folder, _, _ = whole
    before = (folder / "run" / "simclr" / "seed-0" / "result.json").stat().st_mtime_ns
    done = run(folder, "--resume", "run")
    assert (folder / "run" / "simclr" / "seed-0" / "result.json").stat().st_mtime_ns == before
    assert "linear probe top-1 %" in done.stdout
