"""The search as its users run it: from the command line, killed, resumed, and refused."""

import fcntl
import json
import runpy
import signal

import fastaa_search
import here
import in_process
import mlflow
import pandas as pd
import pytest
import ray
import running
import yaml
from databases import new_database

from raykb.runtime import job
from raykb.runtime.checking import check
from raykb.runtime.left import uri_of
from raykb.runtime.storage import LocalStorage
from raykb.runtime.tracking import replay

pytestmark = [
    pytest.mark.timeout(2 * running.LIMIT_S),
    # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]

SCRIPT = running.PIPELINES / "fastaa_search.py"
DEFAULT = running.PIPELINES / "configs" / "augment" / "fastaa_fashion_mnist_sample.yaml"
CONFIGS = sorted((running.PIPELINES / "configs" / "augment").glob("fastaa_*.yaml"))
TINY = running.TINY_SEARCH


def history(directory):
    return pd.read_parquet(directory / "history.parquet").drop(columns="seconds")


@pytest.fixture(scope="module")
def whole(warm_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    new_database(folder)
    with pytest.MonkeyPatch.context() as patch:  # what Ray searches is below, in the slow run
        in_this_process = here.on(here.HERE, fastaa_search.fastaa_search)
        patch.setattr(fastaa_search, "fastaa_search", in_this_process)
        done = in_process.run("fastaa_search", folder, *TINY, "--out", "run")
    assert replay(folder / "run" / "tracking") == 0  # what a slow disk did not take in time
    return folder, done


def test_it_leaves_policy_history_results_and_pictures(whole):
    folder, done = whole
    directory = folder / "run"
    policy = json.loads((directory / "policy.json").read_text())
    assert len(policy["sub_policies"]) > 10
    rows = history(directory)
    assert len(rows) == 2 * 2 * 4
    assert set(rows.status) == {"finished"}
    assert (rows.max_accuracy >= rows.mean_accuracy).all()
    results = json.loads((directory / "results.json").read_text())
    table = results["tables"]["test/top1"]
    assert [row["label"] for row in table] == ["cutout", "searched_policy"]
    assert results["search"]["candidates"] == 16
    for name in ("search_history", "operation_use", "contact_sheet", "comparison"):
        assert (directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "searched_policy" in done.stdout
    last = done.stdout.strip().splitlines()[-4:]
    assert str(directory) in last[0]
    assert "mlflow ui --backend-store-uri sqlite:///" in last[2]
    assert "/#/experiments/" in last[3]


def test_every_run_is_in_mlflow_below_one_parent_with_its_parameters(whole):
    folder, _ = whole
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fast-autoaugment")
    runs = client.search_runs([experiment.experiment_id])
    assert {r.info.status for r in runs} == {"FINISHED"}
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    names = {r.info.run_name for r in runs}
    assert {"theta/split-0", "theta/split-1", "search/split-0", "final/cutout/seed-0"} <= names
    assert all(r.data.params["search.width"] == "4" for r in runs)
    search = next(r for r in runs if r.info.run_name == "search/split-0")
    points = client.get_metric_history(search.info.run_id, "search/best")
    assert [point.step for point in points] == list(range(8))
    assert sorted(p.value for p in points) == [p.value for p in points]
    artifacts = {a.path for a in client.list_artifacts(parents[0].info.run_id)}
    assert {"config.yaml", "policy.json", "history.parquet", "contact_sheet.png"} <= artifacts


def killed_when(folder, name, condition, number):
    """Start a run in ``folder / name`` and send a signal when ``condition(directory)`` holds."""
    directory = folder / name
    return running.stopped(
        "fastaa_search",
        folder,
        *TINY,
        "--out",
        directory,
        when=lambda: condition(directory),
        number=number,
    )


def told(directory):
    ledger = directory / "ledger.jsonl"
    return ledger.read_text().count('"told"') if ledger.exists() else 0


def spool(directory):
    path = directory / "tracking" / "tracking.jsonl"
    return path.read_text() if path.exists() else ""


MOMENTS = {
    "search": lambda directory: told(directory) >= 5,
    "final": lambda directory: any(directory.glob("final/*/*/result.json")),
    # the driver waits for its first trainings, inside Ray's own code
    "waiting": lambda directory: "theta/split-1" in spool(directory),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["search", "final"])
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(warm_ray, whole, moment):
    folder, _ = whole
    status, _ = killed_when(folder, f"killed-{moment}", MOMENTS[moment], signal.SIGKILL)
    assert status == -signal.SIGKILL
    directory = folder / f"killed-{moment}"
    thetas = [path.stat().st_mtime_ns for path in directory.glob("theta/*/result.json")]
    before = told(directory)
    in_process.run("fastaa_search", folder, "--resume", directory)
    assert (directory / "policy.json").read_text() == (folder / "run/policy.json").read_text()
    pd.testing.assert_frame_equal(history(directory), history(folder / "run"))
    again = [path.stat().st_mtime_ns for path in directory.glob("theta/*/result.json")]
    assert set(thetas) <= set(again)
    assert told(directory) == 16 >= before
    tables = [
        json.loads((d / "results.json").read_text())["tables"] for d in (directory, folder / "run")
    ]
    assert tables[0] == tables[1]
    left = LocalStorage(directory)
    assert check(left, tracking_uri=uri_of(left)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment", "child"),
    [
        (signal.SIGTERM, "search", "search/split-0"),
        (signal.SIGINT, "waiting", "theta/split-0"),
    ],
)
def test_a_signal_closes_the_runs_as_killed_and_says_how_to_go_on(whole, number, moment, child):
    folder, _ = whole
    name = f"stopped-by-{number}"
    status, output = killed_when(folder, name, MOMENTS[moment], number)
    assert status == 128 + number
    assert "Traceback" not in output
    assert f"--resume {folder / name}" in output
    assert replay(folder / name / "tracking") == 0  # what a busy machine did not send in time
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fast-autoaugment")
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'KILLED'")
    assert {name, child} <= {r.info.run_name for r in runs}


REFUSED = {
    "unknown key": (["--set", "search.widht=3"], "did you mean 'width'?"),
    "bad value": (["--set", "search.width=0"], "search.width: 0, must be at least 1"),
    "float as text": (["--set", "optimizer.lr=1e-2"], "1.0e-2"),
    "no such file": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "too many CPUs": (["--set", "resources.theta.cpus=640"], "theta trainings: one needs 640 CPU"),
    "nothing to resume": (["--resume", "empty"], "there is no run.json"),
    "batch for workers": (
        ["--set", "resources.final.workers=3"],
        "batch_size: 64 does not divide by 3 workers",
    ),
    "both": (["--resume", "a", "--out", "b"], "--out and --resume: give one of them"),
    "scheme": (["--out", "ftp://host/run"], "must be a path or one of file://"),
    "kept more than searched": (["--set", "search.keep=101"], "must be at most the width, 100"),
}


@pytest.fixture(scope="module")
def module():
    """The script as a module, so that what it refuses costs no new process."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def script(module):
    return module["main"]


OLD = {
    "final.save_every_epochs=5": "is called final.save_every now",
    "theta.warmup_epochs=1": "is called theta.warmup now",
    "theta.label_smoothing=0.1": "is called method.label_smoothing now",
    "comparison.augmentations=[none]": "is called comparison.rivals now",
}


@pytest.mark.parametrize("change", OLD)
def test_an_old_key_is_refused_with_the_new_one(script, tmp_path, monkeypatch, capsys, change):
    monkeypatch.chdir(tmp_path)
    assert script(["--smoke", f"--set={change}"]) == 2
    assert OLD[change] in capsys.readouterr().err


def test_it_may_compare_networks_as_well(module, tmp_path):
    config = here.resolved(
        module,
        DEFAULT,
        "search.width=2",
        "comparison={over: model, rivals: {slim: {name: small_convnet, width: 4}}}",
    )
    here.run(module, "fastaa_search", config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["label"] for row in results["results"]] == ["slim", "small_convnet"]


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_cannot_be_is_refused_at_once(script, tmp_path, monkeypatch, capsys, case):
    arguments, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(ray, "init", lambda *_, **__: started.append("Ray"))
    monkeypatch.setattr(job, "Tracker", lambda *_, **__: started.append("the tracker"))
    assert script(arguments) == 2
    assert started == []
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_does_not_answer_is_refused(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert script([]) == 2
    assert "RAY_ADDRESS: no cluster answers at '127.0.0.1:9'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_more_chunks_than_held_out_images_are_refused_before_the_trainings(warm_ray, tmp_path):
    chunks = ["--set", "search.chunks=999"]
    done = in_process.run("fastaa_search", tmp_path, *TINY, *chunks, "--out", "run", status=2)
    assert "data: chunks=999: must be in 1..96" in done.stderr
    assert not (tmp_path / "run" / "theta").exists()


def test_a_directory_that_is_in_use_is_left_alone(script, whole, monkeypatch, capsys):
    folder, _ = whole
    monkeypatch.chdir(folder)
    assert script([*TINY, "--out", "run"]) == 2
    assert f"--resume {folder / 'run'}" in capsys.readouterr().err
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").touch()
    assert script(["--out", "mine"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_damaged_record_is_told_as_such(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"schema": 1, "ke')
    assert script(["--resume", "run"]) == 2
    assert "--resume run: run.json is damaged" in capsys.readouterr().err


def test_a_changed_config_is_refused_with_the_difference(script, whole, monkeypatch, capsys):
    folder, _ = whole
    monkeypatch.chdir(folder)
    assert script([*TINY, "--set", "search.copies=3", "--resume", "run"]) == 2
    assert "search.copies: 2 -> 3" in capsys.readouterr().err


def test_a_directory_that_another_process_runs_in_is_refused(whole):
    folder, _ = whole
    with (folder / "run" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = in_process.run("fastaa_search", folder, "--resume", "run", status=2)
    assert "another run holds it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_dry_run_prints_plan_and_config_and_starts_nothing(
    script, tmp_path, monkeypatch, capsys, config
):
    monkeypatch.chdir(tmp_path)
    assert script(["--config", str(config), "--smoke", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "theta trainings: 2 x 1 CPU" in output
    assert yaml.safe_load(output)["splits"]["splits"] == 2
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_option_and_says_what_they_do(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        script(["--help"])
    text = capsys.readouterr().out
    for option in ("--config", "--set", "--smoke", "--dry-run", "--out", "--resume"):
        assert option in text
