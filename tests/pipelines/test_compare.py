"""Tracked runs compared from the command line."""

import runpy
import types

import mlflow
import pandas as pd
import pytest
import running
from databases import new_database
from mlflow.entities import Metric, Param

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning")

ACCURACY = {"supervised": [0.60, 0.62, 0.61], "fixmatch": [0.70, 0.71, 0.75]}


def track(client, experiment, name, metrics, params, status="FINISHED", **how):
    """Keep a run that has ended in a store; return its id."""
    run = client.create_run(experiment, run_name=name, **how).info.run_id
    figures = [Metric(key, value, timestamp=0, step=0) for key, value in metrics.items()]
    client.log_batch(run, figures, [Param(key, str(value)) for key, value in params.items()])
    client.set_terminated(run, status)
    return run


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A store with two invocations: an early one of fewer steps, and one of two methods."""
    uri = new_database(tmp_path_factory.mktemp("store"))
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("semi-supervised")
    clock = iter(range(1_700_000_000_000, 1_800_000_000_000, 1000))

    def add(name, parent, metrics, **params):
        tags = {"mlflow.parentRunId": parent} if parent else {"data": "sample"}
        return track(client, experiment, name, metrics, params, start_time=next(clock), tags=tags)

    early = add("early", None, {})
    for seed, top1 in enumerate((0.50, 0.52)):
        metrics = {"test/top1": top1}
        add(f"fixmatch/seed-{seed}", early, metrics, method="fixmatch", seed_number=seed, steps=10)
    late = add("late", None, {}, steps=100, storage="s0")  # parents have the configuration, too
    for seed in range(3):
        for method, scores in ACCURACY.items():
            metrics = {"test/top1": scores[seed], "test/loss": 1.5 + scores[seed]}
            if method == "fixmatch":
                metrics["pseudo_labels/correct"] = 0.8
            place = {"method": method, "seed_number": seed, "steps": 100, "storage": f"s{seed}"}
            add(f"{method}/seed-{seed}", late, metrics, **place)
    return uri


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(running.PIPELINES / "compare.py"))


def test_means_and_paired_differences_of_the_newest_trainings(script, uri, capsys):
    script["main"](["--uri", uri])
    output = capsys.readouterr().out
    assert "6 trainings of semi-supervised in 1 invocations; 2 older ones" in output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()]
    rows = [row for row in rows if row]
    assert rows[0] == ["method", "top-1 %", "sd", "fixmatch − method", "95 % interval"]
    # differences 10, 9 and 14: mean 11, sd 2.646, and 4.303 of it / sqrt(3) on either side
    assert rows[2] == ["supervised", "61.00", "1.00", "+11.00", "+4.43 to +17.57"]
    assert rows[3][:3] == ["fixmatch", "72.00", "2.65"]
    assert rows[4][1] == "correct pseudo-labels %"
    assert rows[6][:3] == ["fixmatch", "80.00", "0.00"]
    assert "not alike" not in output


def test_trainings_are_chosen_listed_and_written(script, uri, tmp_path, capsys):
    file = tmp_path / "table.csv"
    arguments = ["--uri", uri, "--where", "method=fixmatch", "--run", "late", "--run", "early"]
    script["main"]([*arguments, "--list", "--csv", str(file), "--metric", "test/loss"])
    output = capsys.readouterr().out
    assert "| fixmatch/seed-2 |" in output
    assert "supervised/" not in output
    table = pd.read_csv(file)
    assert table["test/loss"].tolist() == pytest.approx([2.20, 2.21, 2.25])
    assert table["invocation"].tolist() == ["late"] * 3
    assert table["seed"].tolist() == [0, 1, 2]


def test_another_parameter_can_be_compared_against_any_of_its_values(script, uri, capsys):
    where = ["--where", "method=fixmatch"]
    script["main"](["--uri", uri, "--by", "steps", "--against", "10", *where])
    output = capsys.readouterr().out
    assert "10 − steps" in output
    # differences -20 and -19 of the seeds that both have: mean -19.5, 12.706 x 0.707 / sqrt(2)
    assert "-19.50 | -25.85 to -13.15" in output
    assert "51.00" in output


def test_a_parent_run_is_no_training(script, uri, capsys):
    script["main"](["--uri", uri, "--by", "steps", "--seed", "storage"])
    assert "3 trainings of semi-supervised in 1 invocations; 3 older" in capsys.readouterr().out


def test_a_training_alone_has_no_columns_of_a_comparison(script, uri, capsys):
    script["main"](["--uri", uri, "--run", "early", "--where", "seed_number=0"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows == ["| method   | top-1 % |", "| -------- | ------: |", "| fixmatch |   50.00 |"]


def test_trainings_that_are_not_alike_are_pointed_out(script, uri, capsys):
    script["main"](["--uri", uri, "--by", "method", "--seed", "steps"])
    assert "These trainings are not alike" in capsys.readouterr().out


def test_methods_may_have_parameters_of_their_own_but_the_same_over_their_seeds(script):
    def training(method, seed, **params):
        params = {"method": method, "seed_number": seed, "recipe.steps": "9"} | params
        return types.SimpleNamespace(params=params)

    runs = [
        training("supervised", "0"),
        training("fixmatch", "0", **{"method.threshold": "0.95"}),
        training("fixmatch", "1", **{"method.threshold": "0.95"}),
    ]
    given = script["parse"](["--by", "method"])
    assert script["unlike"](runs, given) == []
    runs += [training("fixmatch", "2", **{"method.threshold": "0.8"})]
    assert script["unlike"](runs, given) == ["fixmatch: method.threshold: 0.8, 0.95"]


def test_labels_are_headed_by_what_was_compared(script, uri, capsys):
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("widths")
    for seed in range(2):
        for label, top1 in (("plain", 0.6), ("wide", 0.7)):
            params = {"label": label, "seed_number": seed, "method": "uda", "model.width": label}
            params["comparison.over"] = "model"
            found = {"test/top1": top1 + seed / 100} if (label, seed) != ("plain", 1) else {}
            track(client, experiment, f"{label}/seed-{seed}", found, params)
    there = ["--uri", uri, "--experiment", "widths"]
    script["main"](there)
    output = capsys.readouterr().out
    assert [cell.strip() for cell in output.splitlines()[2].split("|")[1:4]] == [
        "model",
        "seeds",
        "top-1 %",
    ]
    assert "1 of 4 trainings has no result: plain/seed-1" in output
    assert "not alike" not in output
    script["main"]([*there, "--by", "method", "--seed", "model.width"])
    assert "| method | top-1 % |" in capsys.readouterr().out


@pytest.fixture(scope="module")
def failures(uri):
    """Trainings of which some failed, with others of the same label and number, or without."""
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("some-failed")
    clock = iter(range(1_700_000_000_000, 1_800_000_000_000, 1000))

    def add(label, seed, top1, status="FINISHED", **params):
        name, params = f"{label}/seed-{seed}", {"label": label, "seed_number": seed, **params}
        found = {"test/top1": top1}
        track(client, experiment, name, found, params, status, start_time=next(clock))

    strict = {"method.threshold": 0.95}
    add("wild", 0, 0.1, "FAILED")
    add("fixmatch", 0, 0.2, "FAILED")  # as far as it came
    add("wild", 1, 0.1, "FAILED")
    add("uda", 0, 0.6)
    add("uda", 1, 0.62)
    add("uda", 1, 0.3, "FAILED")
    add("fixmatch", 0, 0.7, **strict)
    add("fixmatch", 1, 0.74, **strict)
    return ["--uri", uri, "--experiment", "some-failed"]


def test_a_label_that_only_failed_is_a_gap_and_a_failure_made_good_is_none(
    script, failures, tmp_path, capsys
):
    file = tmp_path / "table.csv"
    script["main"]([*failures, "--list", "--csv", str(file)])
    output = capsys.readouterr().out
    assert "6 trainings of some-failed in 6 invocations\n" in output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()]
    rows = [row for row in rows if row and row[0] in ("wild", "uda", "fixmatch")]
    assert [row[:3] for row in rows] == [
        ["wild", "–", "–"],
        ["uda", "61.00", "1.41"],
        ["fixmatch", "72.00", "2.83"],
    ]
    assert "2 of 6 trainings have no result: wild/seed-0, wild/seed-1" in output
    table = pd.read_csv(file).set_index("run")
    assert table["status"].to_dict() == {
        "wild/seed-0": "FAILED",
        "wild/seed-1": "FAILED",
        "uda/seed-0": "FINISHED",
        "uda/seed-1": "FINISHED",
        "fixmatch/seed-0": "FINISHED",
        "fixmatch/seed-1": "FINISHED",
    }
    assert table["test/top1"].isna().sum() == 2


def test_trainings_are_chosen_by_an_argument_of_a_section(script, failures, capsys):
    script["main"]([*failures, "--where", "method.threshold=0.95"])
    output = capsys.readouterr().out
    assert "2 trainings of some-failed" in output
    assert "wild" not in output


def test_where_all_failed_nothing_can_be_compared(script, failures):
    text = refused(script, *failures, "--where", "label=wild")
    assert "of 0 finished runs of 'some-failed' with label=wild, 0 have the parameters" in text
    assert text.endswith("; 2 that failed have")


def test_without_one_thing_compared_the_parameter_heads_its_values(script):
    runs = [types.SimpleNamespace(params={"comparison.over": over}) for over in ("data", "model")]
    assert script["over_of"](runs, "label") == "label"
    assert script["over_of"](runs[:1], "label") == "data"
    assert script["over_of"](runs[:1], "steps") == "steps"


def refused(script, *arguments):
    with pytest.raises(SystemExit) as stopped:
        script["main"](list(arguments))
    return str(stopped.value.code)


def test_what_is_not_there_is_said_with_what_there_is(script, uri, tmp_path):
    there = ["--uri", uri]
    assert "there is early, late" in refused(script, *there, "--run", "never")
    assert "there is test/loss, test/top1" in refused(
        script, *there, "--metric", "top1", "--where", "method=supervised"
    )
    assert "--against uda: not among supervised, fixmatch" in refused(
        script, *there, "--run", "late", "--against", "uda"
    )
    assert "write --where KEY=VALUE" in refused(script, *there, "--where", "steps")
    assert "0 have the parameters 'augmentation'" in refused(script, *there, "--by", "augmentation")
    assert "of 0 finished runs of 'semi-supervised' with data=other" in refused(
        script, *there, "--tag", "data=other"
    )
    assert "'other' is not there; the store has Default, semi-supervised" in refused(
        script, *there, "--experiment", "other"
    )
    assert "there is no such file" in refused(script, "--uri", f"sqlite:///{tmp_path}/none.db")


def test_no_password_of_a_store_is_shown(script, monkeypatch):
    monkeypatch.setitem(script["wanted"].__globals__, "tracked_runs", lambda *given, **more: [])
    text = refused(script, "--uri", "http://me:abc@host")
    assert text.startswith("error: http://***@host: of 0 finished runs")
