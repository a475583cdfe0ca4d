"""A pipeline as its users run it: from the command line, refused, killed, resumed otherwise."""

import dataclasses
import functools
import json
import runpy
import shutil
import signal
import types

import gpipe_train
import here
import in_process
import mlflow
import pooled
import pytest
import running
import torch
import yaml
from databases import new_database
from torch import nn

from raykb.gpipe.costs import Costs
from raykb.models import SEQUENTIALS
from raykb.runtime.stages import StageResources
from raykb.runtime.tracking import replay

pytestmark = [
    pytest.mark.timeout(2 * running.LIMIT_S),
    # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]

SCRIPT = running.PIPELINES / "gpipe_train.py"
CONFIGS = sorted((running.PIPELINES / "configs" / "gpipe").glob("*.yaml"))
TINY = ["--smoke", "--set=data.train_size=100", "--set=recipe.batch_size=32"]
run = functools.partial(in_process.run, "gpipe_train")


def run_on_pool(folder, *arguments):
    """Run the script in this process, its stages in those of gloo."""
    with pytest.MonkeyPatch.context() as patch:
        on_pool = here.on(pooled.POOLED, gpipe_train.gpipe_train)
        patch.setattr(gpipe_train, "gpipe_train", on_pool)
        return run(folder, *arguments)


@pytest.fixture(scope="module")
def whole(warm_ray, gloo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    new_database(folder)
    done = run_on_pool(folder, *TINY, "--out", "run")  # what Ray trains is below, in the slow run
    assert replay(folder / "run" / "tracking") == 0  # what a slow disk did not take in time
    return folder, done


@pytest.fixture(scope="module")
def script():
    """The script as a module, so that what it refuses costs no new process."""
    return runpy.run_path(str(SCRIPT))


def test_it_leaves_weights_trace_and_pictures(whole):
    folder, done = whole
    directory = folder / "run"
    results = json.loads((directory / "results.json").read_text())["metrics"]
    assert {"test/top1", "test/loss", "pipeline/bubble", "pipeline/runtime"} <= results.keys()
    assert results["pipeline/bubble"] == pytest.approx(4 / 5)
    weights = torch.load(directory / "training" / "final.pt", weights_only=True)
    SEQUENTIALS["small_resnet_sequential"](classes=10, channels=1).load_state_dict(weights)
    trace = json.loads((directory / "trace.json").read_text())["traceEvents"]
    assert {"F0", "F3", "B0", "B3"} <= {event["name"] for event in trace}
    assert (directory / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert "| stage | worker |" in done.stderr
    assert "predicted: bubble 0.80" in done.stderr
    assert "test/top1" in done.stdout


def test_figures_are_in_mlflow(whole):
    folder, _ = whole
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gpipe")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    assert runs["training"].data.params["pipeline.schedule"] == "1f1b"
    assert {"train/loss", "lr", "time/step_s"} <= {
        name.removeprefix("train/") if name == "train/lr" else name
        for name in runs["training"].data.metrics
    }
    parent = runs["run"].data.metrics
    for factor in ("bubble", "balance", "runtime"):
        assert {f"pipeline/{factor}", f"pipeline/predicted/{factor}"} <= parent.keys()
    assert "test/top1" in parent
    assert {"memory/worker-0/predicted_mib", "memory/worker-1/peak_mib"} <= parent.keys()
    artifacts = {a.path for a in client.list_artifacts(runs["run"].info.run_id)}
    assert {"config.yaml", "timeline.png", "trace.json", "costs.json"} <= artifacts


def test_all_that_is_wrong_is_refused_in_one_message(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = {
        "pipeline.balance": "[3, 4, 5]",
        "pipeline.stages": "40",
        "pipeline.micro_batches": "2",
        "pipeline.schedule": "1f1b",
        "optimizer.lr": "-0.1",
        "method.label_smoothing": "1.0",
    }
    changes = [f"--set={key}={value}" for key, value in wrong.items()]
    assert script["main"](["--smoke", *changes]) == 2
    text = capsys.readouterr().err
    for part in (
        "micro_batches: 2, the schedule 1f1b needs at least as many",
        "stages: 40, must not be above the 31 layers",
        "sums to 12, must sum to the model's 31",
        "has 3 stages, must have 40",
        "optimizer: Invalid learning rate: -0.1",
        "method.label_smoothing: 1.0, must be in [0, 1)",
        "stages: 40 workers of 1 CPU",
    ):
        assert text.count(part) == 1, part
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "batch": (["recipe.batch_size=0"], "batch_size: 0, must be at least 1"),
    "clip": (["recipe.clip_norm=0.0"], "clip_norm: 0.0, must be above 0, or null"),
    "smoothing": (["method.label_smoothing=1.0"], "label_smoothing: 1.0, must be in [0, 1)"),
    "old": (["recipe.label_smoothing=0.1"], "is called method.label_smoothing now"),
    "optimizer": (["optimizer={name: sgd, lr: -0.1}"], "optimizer: Invalid learning rate: -0.1"),
    "layers": (
        ["optimizer={name: adamw, lr: 0.1, weight_decay: 0.0, layer_decay: 0.5}"],
        "layer_decay: 0.5, must be 1: a stage counts its own layers only",
    ),
    "schedule": (["pipeline.schedule=2f2b"], "pipeline.schedule"),
    "stages per worker": (
        ["pipeline.schedule=interleaved", "pipeline.stages_per_worker=3"],
        "stages: 2, must be a multiple of stages_per_worker, 3",
    ),
    "recomputed": (
        ["pipeline.schedule=zero_bubble", "pipeline.checkpoint=always"],
        "checkpoint: 'always', must be never with the schedule zero_bubble",
    ),
    "workers": (
        ["pipeline.stages=31", "pipeline.schedule=gpipe"],
        "training: one needs 31 x (1 CPU)",
    ),
    "model": (["model={name: small_resnet_sequentail}"], "did you mean 'small_resnet_sequential'?"),
    "place": (["pipeline.place=near"], "pack"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pipeline_that_cannot_be_is_refused_at_once(script, tmp_path, monkeypatch, capsys, case):
    changes, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    assert script["main"](["--smoke", *(f"--set={change}" for change in changes)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class Nothing(nn.Module):
    """A layer that returns no tensor."""

    def forward(self, x):
        return {"x": x}


def unfit(classes, channels):
    shared = nn.Linear(28, 28)
    return nn.Sequential(shared, Nothing(), nn.Linear(28, classes), shared)


@pytest.mark.parametrize(
    ("balance", "sharers"), [("[2, 2]", "by stages [0, 1]"), ("time", "by several layers")]
)
def test_models_that_cannot_be_cut_are_refused(
    script, tmp_path, monkeypatch, capsys, balance, sharers
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SEQUENTIALS, "unfit", unfit)
    changes = ["--set=model={name: unfit}", f"--set=pipeline.balance={balance}"]
    assert script["main"](["--smoke", *changes]) == 2
    text = capsys.readouterr().err
    assert f"shared {sharers}" in text
    assert "layer '1' returned dict" in text


def test_layers_are_measured_again_for_micro_batches_of_another_size(script, tmp_path):
    measured, costs = [], Costs([0.1], [0.2], [])

    def call(function, network, sample, *others, resources):
        measured.append(len(sample))
        return costs

    session = here.session(tmp_path, {"seed": 0})
    session.machine = dataclasses.replace(session.machine, call=call)
    for rows in (4, 4, 16, 16):
        sample = torch.zeros(rows, 1)
        data = types.SimpleNamespace(network=None)
        ready = types.SimpleNamespace(data=data, sample=sample, each=StageResources())
        assert script["costs_of"](session, ready) == costs
    assert measured == [4, 16]


def test_it_goes_on_with_other_stages_and_nothing_else_may_change(script, whole, capsys):
    folder, _ = whole
    directory = str(folder / "run")
    assert script["main"](["--resume", directory, "--set", "optimizer.lr=0.2"]) == 2
    text = capsys.readouterr().err
    assert "optimizer.lr: 0.1 -> 0.2" in text
    assert "pipeline, resources and watch may change" in text


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_as_if_nothing_had_happened(whole):
    """With as many stages, and from the same checkpoint with fewer; Ray's workers are killed."""
    folder, _ = whole
    costs = Costs.of_state(json.loads((folder / "run" / "costs.json").read_text()))
    same_cut = costs.balance("time", 2, checkpoint="never")  # it would measure other times
    first = folder / "killed-2" / "training" / "step-00000004" / "manifest.json"
    status, _ = running.stopped(
        "gpipe_train",
        folder,
        *TINY,
        f"--set=pipeline.balance={same_cut}",
        "--out",
        "killed-2",
        when=first.exists,
        number=signal.SIGKILL,
    )
    assert status == -signal.SIGKILL
    shutil.copytree(folder / "killed-2", folder / "killed-1")
    run_on_pool(folder, "--resume", "killed-2")
    fewer = ["--set=pipeline.stages=1", "--set=pipeline.balance=time"]
    run_on_pool(folder, "--resume", "killed-1", *fewer)
    uninterrupted, same, fewer = (
        torch.load(folder / name / "training" / "final.pt", weights_only=True)
        for name in ("run", "killed-2", "killed-1")
    )
    for name, value in uninterrupted.items():
        assert torch.equal(same[name], value), name
        torch.testing.assert_close(fewer[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_dry_run_prints_plan_and_config_and_starts_nothing(
    script, tmp_path, monkeypatch, capsys, config
):
    monkeypatch.chdir(tmp_path)
    assert script["main"](["--config", str(config), "--smoke", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "training: 1 x 2 x (1 CPU)" in output
    assert yaml.safe_load(output)["pipeline"]["stages"] == 2
    assert list(tmp_path.iterdir()) == []
