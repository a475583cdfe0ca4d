"""Semi-supervised training as its users run it: refused, to its end, killed, and gone on with."""

import dataclasses
import functools
import json
import runpy
import signal
import types

import here
import in_process
import mlflow
import numpy as np
import pandas as pd
import pytest
import running
import torch
import yaml
from databases import new_database

from raykb.data.datasets import DATASETS
from raykb.data.labels import Labels, to_json
from raykb.models import MODELS
from raykb.runtime.checking import check
from raykb.runtime.left import uri_of
from raykb.runtime.session import Refused
from raykb.runtime.storage import LocalStorage
from raykb.runtime.streams import BrokenImages
from raykb.runtime.tracking import replay

pytestmark = [
    pytest.mark.timeout(2 * running.LIMIT_S),
    # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]

SCRIPT = running.PIPELINES / "semi_train.py"
DEFAULT = running.PIPELINES / "configs" / "semi" / "fashion_mnist_sample.yaml"
CONFIGS = sorted((running.PIPELINES / "configs" / "semi").glob("*.yaml"))
TINY = ["--smoke", "--set=recipe.steps=10"]
WITHOUT_CONTRAST = "--set=method={name: contrastive_regularization, weight: 0.0}"
RIVALS = "--set=comparison.rivals={supervised: {name: supervised}, fixmatch: {name: fixmatch}}"
run = functools.partial(in_process.run, "semi_train")


@pytest.fixture(scope="module")
def whole(warm_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    new_database(folder)
    here = "--set=stream={name: in_place}"  # Ray's is below, in the slow run
    done = run(
        folder, *TINY, here, WITHOUT_CONTRAST, RIVALS, "--set=comparison.seeds=2", "--out", "run"
    )
    assert replay(folder / "run" / "tracking") == 0  # what a slow disk did not take in time
    return folder, done


@pytest.fixture(scope="module")
def script():
    """The script as a module, so that what it refuses costs no new process."""
    return runpy.run_path(str(SCRIPT))


def weights(directory):
    return torch.load(directory / "final.pt", weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_leaves_weights_labels_tables_and_pictures(whole):
    folder, done = whole
    directory = folder / "run"
    splits = json.loads((directory / "labels.json").read_text())["splits"]
    assert [np.bincount(split["labels"]).tolist() for split in splits] == [[4] * 10] * 2
    assert splits[0]["ids"] != splits[1]["ids"]
    model = MODELS["small_convnet"](classes=10, channels=1)
    model.load_state_dict(weights(directory / "fixmatch" / "seed-0"))
    results = json.loads((directory / "results.json").read_text())
    assert len(results["results"]) == 6
    assert {
        "test/top1",
        "pseudo_labels/correct",
        "pseudo_labels/mask_rate",
        "test/class_accuracy/9",
    } <= results["results"][-1].keys()
    methods = ["supervised", "fixmatch", "contrastive_regularization"]
    assert [row["label"] for row in results["tables"]["test/top1"]] == methods
    assert [row["label"] for row in results["tables"]["pseudo_labels/correct"]] == methods[1:]
    shares = pd.read_csv(directory / "class_accuracy.csv")
    assert len(shares) == 3 * 10
    sums = json.loads((directory / "confusion.json").read_text())["sums"]
    assert {name: int(np.sum(matrix)) for name, matrix in sums.items()} == dict.fromkeys(
        methods, 2 * 200
    )
    own = shares[shares["label"] == "fixmatch"]["accuracy"]
    np.testing.assert_allclose(own, np.diag(sums["fixmatch"]) / np.sum(sums["fixmatch"], axis=1))
    for name in ("pseudo_labels", "class_histogram", "confusion", "comparison"):
        assert (directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "correct pseudo-labels %" in done.stdout
    assert (directory / "results.md").read_text().strip() in done.stdout
    assert "40 labelled, 10,000 unlabelled, 200 test images of 10 classes" in done.stderr


def test_methods_are_paired_so_contrast_of_weight_zero_is_fixmatch_bit_for_bit(whole):
    directory = whole[0] / "run"
    for seed in ("seed-0", "seed-1"):
        fixmatch, contrast, supervised = (
            weights(directory / method / seed)
            for method in ("fixmatch", "contrastive_regularization", "supervised")
        )
        assert same(fixmatch, contrast)
        assert not same(fixmatch, supervised)
    assert not same(weights(directory / "fixmatch/seed-0"), weights(directory / "fixmatch/seed-1"))


def test_its_table_is_made_again_from_mlflow_and_its_last_words_lead_to_its_charts(whole, tmp_path):
    folder, done = whole
    again = tmp_path / "again.md"
    in_process.run("compare", folder, "--run", "run", "--markdown", again)
    assert again.read_text() == (folder / "run" / "results.md").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("semi-supervised")
    page = done.stdout.splitlines()[-1]
    assert page.startswith("its charts      http://127.0.0.1:5000/#/experiments/")
    run = client.get_run(page.rpartition("=")[2])
    assert run.data.tags["mlflow.note.content"] == again.read_text().strip()
    assert "test/top1" in run.data.metrics
    assert f"mlflow.sharedViewState.{run.info.run_id}" in experiment.tags


def test_every_training_is_in_mlflow_with_method_seed_and_figures(whole):
    folder, _ = whole
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("semi-supervised")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    child = runs["fixmatch/seed-1"]
    assert child.data.params["label"] == child.data.params["method.name"] == "fixmatch"
    assert child.data.params["comparison.over"] == "method"
    assert child.data.params["seed_number"] == "1"
    assert "method.weight" not in child.data.params  # it is the other method's
    assert runs["contrastive_regularization/seed-1"].data.params["method.weight"] == "0.0"
    assert {"pseudo_labels/correct", "test/top1", "train/mask_rate", "train/cluster_size"} <= (
        child.data.metrics.keys()
    )
    assert {"train/class_share/3", "time/data_wait_s"} <= child.data.metrics.keys()
    steps = client.get_metric_history(child.info.run_id, "train/pseudo_label_precision")
    assert [point.step for point in steps] == [5, 10]
    assert [a.path for a in client.list_artifacts(child.info.run_id)] == ["confusion.json"]
    artifacts = {a.path for a in client.list_artifacts(runs["run"].info.run_id)}
    assert {"config.yaml", "labels.json", "results.md", "pseudo_labels.png"} <= artifacts


def test_its_weights_label_images_as_well_as_it_says(whole, tmp_path):
    directory = whole[0] / "run"
    test = running.PIPELINES.parent / "raykb/data/samples/fashion_mnist_test.parquet"
    out = tmp_path / "labels.parquet"
    predict = runpy.run_path(str(running.PIPELINES / "predict.py"))["main"]
    predict([str(directory / "fixmatch" / "seed-0"), str(test), "--out", str(out)])
    images = DATASETS["fashion_mnist_sample"](train_size=10, test_size=200)[1]
    labelled = pd.read_parquet(out).set_index("id").loc[images.ids]
    rows = json.loads((directory / "results.json").read_text())["results"]
    row = next(r for r in rows if (r["label"], r["seed"]) == ("fixmatch", 0))
    assert (labelled["label"] == images.labels).mean() == pytest.approx(row["test/top1"])
    assert labelled["class"].iloc[0] in images.classes


def test_its_table_is_printed_from_the_tracked_runs_as_well(whole, monkeypatch, capsys):
    folder, _ = whole
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runpy.run_path(str(running.PIPELINES / "compare.py"))["main"](["--run", "run"])
    output = capsys.readouterr().out
    assert "6 trainings of semi-supervised in 1 invocations" in output
    for table in (folder / "run" / "results.md").read_text().strip().split("\n\n"):
        assert table in output
    assert "not alike" not in output


def test_all_that_is_wrong_is_refused_in_one_message(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = {
        "stream": "{name: loader, workers: -1}",
        "resources.training.workers": "3",
        "labels.count": "5",
        "model": "{name: wide_resnet, depth: 11, width: 1}",
        "view": "{name: crop_flip, mean: [0.1, 0.2, 0.3], std: [0.3]}",
        "comparison.rivals": "{loose: {name: fixmatch, threshold: 1.5}}",
    }
    changes = [f"--set={key}={value}" for key, value in wrong.items()]
    assert script["main"](["--smoke", *changes]) == 2
    text = capsys.readouterr().err
    for part in (
        "stream.workers: -1, must be at least 0",
        "recipe.batch_size: 20 does not divide by 3 workers",
        "labels.count: 5, cannot be drawn (size=5: of 10000 labels in 10 classes",
        "model: depth=11, width=1: depth must be 6n + 4",
        "view.mean: 3 values for images of 1 channel(s)",
        "comparison.rivals.loose.threshold: 1.5, must be in 0..1",
    ):
        assert text.count(part) == 1, part
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "method": (["method={name: fixmach}"], "did you mean 'fixmatch'?"),
    "argument": (["method={name: fixmatch, treshold: 0.9}"], "did you mean 'threshold'?"),
    "rival": (
        ["comparison.rivals={loose: {name: fixmatch, treshold: 0.9}}"],
        "comparison.rivals.loose.treshold: unknown (did you mean 'threshold'?)",
    ),
    "twice": (
        ["method={name: fixmatch}", "comparison.rivals={fixmatch: {name: uda}}"],
        "call the rival otherwise",
    ),
    "over": (["comparison.over=metod"], "did you mean 'method'?"),
    "recipe": (["recipe.ema_decay=1.0"], "recipe.ema_decay: 1.0, must be in [0, 1)"),
    "both lengths": (["recipe.epochs=3"], "give one of the two"),
    "batch": (["unlabelled.ratio=900"], "batch_size: 18000 rows of each step"),
    "paths": (["unlabelled.paths=nowhere"], "nowhere: must be a Parquet file or a folder"),
    "resources": (["resources.data.cpus=64"], "1 CPU + 64 x (1 CPU) for data workers"),
    "data": (
        ["data={name: parquet, train: nowhere, test: nowhere}", "unlabelled.paths=x"],
        "data: nowhere",
    ),
    "no shards": (
        ["data={name: parquet, train: nowhere, test: nowhere}"],
        "unlabelled.paths: names no shards",
    ),
    "features": (["model={name: featureless}"], "has no classify, features, width, which contr"),
    **{
        f"label {label}": ([f"comparison.rivals={{'{label}': {{name: uda}}}}"], repr(label))
        for label in ("..", ".lock", "run.json", "a?x", "a/b")
    },
}


OLD = {
    "views={name: fixmatch}": "is called pair now",
    "recipe.unlabelled_ratio=4": "is called unlabelled.ratio now",
    "recipe.warmup_steps=4": "is called recipe.warmup now",
    "stream.views=trainer": "is called unlabelled.views_by now",
    "stream.paths=x": "is called unlabelled.paths now",
    "resources.training.at_most=1": "is called resources.training.side_by_side now",
}


@pytest.mark.parametrize("change", OLD)
def test_an_old_key_is_refused_with_the_new_one(script, tmp_path, monkeypatch, capsys, change):
    monkeypatch.chdir(tmp_path)
    assert script["main"](["--smoke", f"--set={change}"]) == 2
    assert OLD[change] in capsys.readouterr().err


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_any_argument_of_any_method_can_be_set_on_every_configuration(script, config):
    def method(*changes):
        return here.resolved(script, config, *changes)["method"]

    assert method("method.threshold=0.9")["threshold"] == 0.9
    free = method("method.name=freematch", "method.momentum=0.5")
    assert (free["name"], free["momentum"], free["fairness_weight"]) == ("freematch", 0.5, 0.01)


class Featureless(torch.nn.Module):
    """A classifier of one piece."""

    def __init__(self, classes, channels):
        super().__init__()
        self.layer = torch.nn.LazyLinear(classes)

    def forward(self, images):
        return self.layer(images.flatten(1))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_at_once(script, tmp_path, monkeypatch, capsys, case):
    changes, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "featureless", Featureless)
    assert script["main"](["--smoke", *(f"--set={change}" for change in changes)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_labels_are_those_that_the_run_began_with_whatever_would_be_drawn_now(script, tmp_path):
    config = here.resolved(script, DEFAULT)
    data = script["prepare"](config).data
    drawn, other = data.drawn[0], Labels(count=40).draw(data.train, 12345)
    assert other.ids.tolist() != drawn.ids.tolist()
    assert trained_on(script, config, tmp_path) == drawn.ids.tolist()
    (tmp_path / "labels.json").write_text(to_json([other]))
    assert trained_on(script, config, tmp_path) == other.ids.tolist()
    (tmp_path / "labels.json").write_text(to_json([other, other]))
    with pytest.raises(Refused, match=r"has splits of \[40, 40\] images, and the run began"):
        trained_on(script, config, tmp_path)


def test_a_run_does_not_go_on_with_other_unlabelled_images(script, tmp_path):
    config = here.resolved(script, DEFAULT)
    trained_on(script, config, tmp_path)
    record = json.loads((tmp_path / "stream.json").read_text())
    (tmp_path / "stream.json").write_text(json.dumps(record | {"images": 9_999}))
    with pytest.raises(
        Refused, match=r'unlabelled\.paths: \{"images": 10000\} where the run began'
    ):
        trained_on(script, config, tmp_path)


class Enough(Exception):
    """The jobs are there; their training is not wanted."""


def trained_on(script, config, folder):
    """Return the ids of the labelled images that a run would train on."""

    def train(jobs, **how):
        raise Enough(jobs[0].arguments["labelled"].ids.tolist())

    session = here.session(folder, config)
    session.machine = dataclasses.replace(here.HERE, train=train)
    with pytest.raises(Enough) as found:
        script["semi_train"](session, script["prepare"](config))
    return found.value.args[0]


def test_a_run_may_go_on_with_another_way_to_the_same_images(script, whole, capsys):
    directory = str(whole[0] / "run")
    same = "--set=stream={name: loader, workers: 1, timeout_s: 9.0}"
    assert script["main"](["--resume", directory, "--dry-run", same]) == 0
    capsys.readouterr()
    stream = "--set=stream={name: ray, store_mib: 9.0}"
    other = ["--set=unlabelled.views_by=trainer", stream]
    assert script["main"](["--resume", directory, "--dry-run", *other]) == 2
    text = capsys.readouterr().err
    assert "unlabelled.views_by: workers -> trainer" in text
    assert "stream.store_mib: " not in text


def test_broken_images_of_all_ranks_are_named_once(script, tmp_path):
    session = here.session(tmp_path)
    session.recorded = {"resources": {"training": {"workers": 2}}}
    session.config = {"resources": {"training": {"workers": 1}}}
    said = []
    session.say = said.append
    storages = [LocalStorage(tmp_path / name) for name in "ab"]
    results = [types.SimpleNamespace(storage=storage) for storage in storages]
    BrokenImages(storages[0].uri)(1, "x.parquet, row 9: no bytes")
    BrokenImages(storages[1].uri)(0, "x.parquet, row 9: no bytes")
    BrokenImages(storages[1].uri)(0, "x.parquet, row 7: no bytes")
    script["tell_broken"](session, results)
    text = (tmp_path / "broken_images.txt").read_text()
    assert text == "x.parquet, row 7: no bytes\nx.parquet, row 9: no bytes\n"
    assert said[0].startswith("2 unlabelled images are broken")


def test_any_section_can_be_compared(script, tmp_path):
    config = here.resolved(
        script,
        DEFAULT,
        "stream={name: in_place}",
        "recipe.steps=2",
        "comparison={over: model, seeds: 2, rivals: {slim: {name: small_convnet, width: 4}}}",
    )
    session = here.run(script, "semi_train", config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["over"], results["subject"]) == ("model", "small_convnet")
    assert [row["seeds"] for row in results["tables"]["test/top1"]] == [2, 2]
    widths = {
        n: len(weights(tmp_path / n / "seed-0")["1.weight"]) for n in ("slim", "small_convnet")
    }
    assert widths == {"slim": 4, "small_convnet": 16}
    assert session.tracker.runs["slim/seed-1"].given["model.width"] == "4"


def test_a_training_that_fails_may_cost_one_cell(script, tmp_path, capsys):
    config = here.resolved(
        script,
        DEFAULT,
        "stream={name: in_place}",
        "recipe.steps=2",
        "comparison.on_failure=hole",
        "comparison.over=optimizer",
        "comparison.rivals={wild: {name: sgd, lr: 1.0e+38}}",
    )
    session = here.run(script, "semi_train", config, tmp_path)
    assert session.holes == ["wild/seed-0"]
    assert "FloatingPointError" in session.tracker.runs["wild/seed-0"].texts["error.txt"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["missing"] == ["wild/seed-0"]
    assert "1 of 2 trainings has no result: wild/seed-0" in capsys.readouterr().out
    config["comparison"]["on_failure"] = "stop"
    with pytest.raises(FloatingPointError):
        here.run(script, "semi_train", config, tmp_path / "stops")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_dry_run_prints_plan_and_config_and_starts_nothing(
    script, tmp_path, monkeypatch, capsys, config
):
    monkeypatch.chdir(tmp_path)
    assert script["main"](["--config", str(config), "--smoke", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "x 1 CPU + 1 CPU for data workers" in output
    assert yaml.safe_load(output)["labels"]["count"] == 40
    assert list(tmp_path.iterdir()) == []


def test_data_workers_may_share_the_trainings_cpus(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for change in ("resources.data.cpus=0", "stream={name: in_place}"):
        assert script["main"](["--smoke", "--dry-run", f"--set={change}"]) == 0
        assert "trainings: 1 x 1 CPU\n" in capsys.readouterr().out


LONGER = ["--smoke", "--set=recipe.steps=100"]


@pytest.fixture(scope="module")
def uninterrupted(warm_ray, tmp_path_factory):
    """The longer run, which nothing happens to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    new_database(folder)
    run(folder, *LONGER, "--set=stream={name: in_place}", "--out", "run")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["ray", "loader"])
def test_killed_it_goes_on_and_ends_as_if_nothing_had_happened(uninterrupted, tmp_path, stream):
    """Whichever of the two brings the images: both bring the same."""
    new_database(tmp_path)
    directory = tmp_path / "killed"
    training = directory / "contrastive_regularization" / "seed-0"
    status, _ = running.stopped(
        "semi_train",
        tmp_path,
        *LONGER,
        f"--set=stream={{name: {stream}}}",
        "--out",
        directory,
        when=(training / "step-00000005" / "manifest.json").exists,
        number=signal.SIGKILL,
    )
    assert status == -signal.SIGKILL
    assert not (training / "final.pt").exists()
    done = run(tmp_path, "--resume", directory)
    assert "contrastive_regularization/seed-0: goes on after step " in done.stderr
    other = uninterrupted / "contrastive_regularization" / "seed-0"
    assert same(weights(training), weights(other))
    tables = [json.loads((d / "results.json").read_text()) for d in (directory, uninterrupted)]
    assert tables[0]["tables"] == tables[1]["tables"]
    points = (directory / "tracking" / "tracking.jsonl").read_text()
    assert ("train/stream/spilled_mib" in points) == (stream == "ray")
    left = LocalStorage(directory)
    assert check(left, tracking_uri=uri_of(left)) == []


@pytest.mark.slow
def test_two_workers_share_the_cores_with_the_data_workers(warm_ray, tmp_path):
    new_database(tmp_path)
    two = ["--set=resources.training.workers=2", "--set=resources.data.cpus=0"]
    run(tmp_path, *TINY, *two, "--out", "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert results[0]["steps"] == 10
