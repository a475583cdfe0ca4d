"""Supervised training as its users run it: refused, compared, and gone on with."""

import functools
import json
import runpy

import here
import in_process
import numpy as np
import pytest
import running
import torch
from databases import new_database

from raykb.config import ConfigError
from raykb.engine.objective import OBJECTIVES

pytestmark = [
    pytest.mark.timeout(2 * running.LIMIT_S),
    # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]

DEFAULT = running.PIPELINES / "configs" / "recognition" / "fashion_mnist_sample.yaml"
ONE = "comparison={over: mixing, seeds: 1, rivals: {}}"
run = functools.partial(in_process.run, "train")


@pytest.fixture(scope="module")
def script():
    """The script as a module, so that what it refuses costs no new process."""
    return runpy.run_path(str(running.PIPELINES / "train.py"))


def trained(script, folder, *overrides):
    """Run trainings of a few steps here; return the session."""
    short = ["recipe.epochs=1", "recipe.warmup=0", "data.train_size=120", *overrides]
    return here.run(script, "train", here.resolved(script, DEFAULT, *short), folder)


def weights(folder, label):
    return torch.load(folder / label / "seed-0" / "final.pt", weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------- what is compared


def test_mixing_of_no_batch_is_none_bit_for_bit_and_of_all_it_is_not(script, tmp_path):
    never, always = (f"{{name: cutmix, probability: {share}}}" for share in ("0.0", "1.0"))
    rivals = f"{{never: {never}, always: {always}}}"
    trained(
        script,
        tmp_path,
        "mixing={name: none}",
        f"comparison={{over: mixing, seeds: 1, rivals: {rivals}}}",
    )
    none, never, always = (weights(tmp_path, label) for label in ("none", "never", "always"))
    assert same(none, never)
    assert not same(none, always)


def test_methods_and_models_can_be_compared_as_well(script, tmp_path):
    rivals = "{smooth: {name: cross_entropy, label_smoothing: 0.2}}"
    trained(script, tmp_path, f"comparison={{over: method, seeds: 1, rivals: {rivals}}}")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["label"] for row in results["results"]] == ["smooth", "cross_entropy"]
    assert not same(weights(tmp_path, "smooth"), weights(tmp_path, "cross_entropy"))


def test_images_of_other_kinds_are_told_from_the_own_where_there_are_some(script, tmp_path):
    config = here.resolved(script, DEFAULT, ONE)
    del config["outside"]
    here.run(script, "train", config, tmp_path / "without")
    trained(script, tmp_path / "with", ONE)
    without, both = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("without", "with")
    )
    assert without["tables"].keys() == {"test/top1", "test/loss"}
    assert both["tables"].keys() == {"test/top1", "test/loss", "test/ood/auroc"}


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("mixing.alpha=0", r"mixing.alpha: 0.0, must be above 0"),
        ("mixing.probability=2", r"mixing.probability: 2.0, must be in 0..1"),
        ("comparison.rivals.cutout.size=0", r"comparison.rivals.cutout.size: 0, must be at least"),
        ("outside.classes=[Bags]", r"outside.*: .*must name some of the set's classes"),
        ("outside.image_size=20", r"outside: images have the shape \(1, 20, 20\), those of the"),
        ("method.label_smoothing=1", r"method.label_smoothing: 1.0, must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(script, given, told):
    with pytest.raises(ConfigError, match=told):
        script["prepare"](here.resolved(script, DEFAULT, given))


def test_an_objective_of_whole_labels_is_refused_where_labels_are_mixed(script, monkeypatch):
    monkeypatch.setitem(
        script["prepare"].__globals__["METHODS"], "hard", OBJECTIVES["cross_entropy"]
    )
    given = ["method={name: hard}", "comparison={over: mixing, rivals: {cut: {name: cutout}}}"]
    with pytest.raises(ConfigError, match=r"mixing: CrossEntropy learns from images, labels"):
        script["prepare"](here.resolved(script, DEFAULT, *given))
    fine = here.resolved(script, DEFAULT, *given, "mixing={name: none}")
    assert script["prepare"](fine).comparison.entries(fine).keys() == {"cut", "none"}


# ---------------------------------------------------------------------- on Ray


slow = pytest.mark.slow  # twenty seconds; what it is made of is tested in this process


@pytest.fixture(scope="module")
def whole(warm_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    new_database(folder)
    return folder, run(folder, "--smoke", "--set=comparison.seeds=1", "--out", "run")


@slow
def test_it_leaves_weights_tables_and_pictures(whole):
    folder, done = whole
    directory, labels = folder / "run", ["none", "cutout", "mixup", "cutmix"]
    results = json.loads((directory / "results.json").read_text())
    assert [row["label"] for row in results["results"]] == labels
    sums = json.loads((directory / "confusion.json").read_text())
    assert {name: int(np.sum(of)) for name, of in sums["sums"].items()} == dict.fromkeys(labels, 80)
    assert len(sums["classes"]) == 8
    for name in ("curves", "confusion", "comparison"):
        assert (directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "160 train images, 80 test images, 20 outside images" in done.stderr
    assert "AUROC of other images %" in done.stdout


@slow
def test_a_run_that_goes_on_redoes_no_training(whole):
    folder, _ = whole
    record = folder / "run" / "cutmix" / "seed-0" / "result.json"
    before = record.stat().st_mtime_ns
    again = run(folder, "--resume", "run")
    assert record.stat().st_mtime_ns == before
    assert "top-1 %" in again.stdout
