"""Tracked runs compared from the command line."""

import html.parser
import math
import runpy

import here
import mlflow
import pandas as pd
import pytest
import running
import torch
from databases import new_database
from mlflow.entities import Metric, Param

from raykb.comparison import Comparison
from raykb.engine.loop import Evaluated, Training
from raykb.runtime import runs
from raykb.runtime.tracking import Tracker
from raykb.runtime.work import TrainJob

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
    monkeypatch.setattr(runs, "tracked_runs", lambda *given, **more: [])
    text = refused(script, "--uri", "http://me:abc@host")
    assert text.startswith("error: http://***@host: of 0 finished runs")


# ---------------------------------------------------------------------- one run


CONFIG = {"seed": 3, "method": {"name": "own", "factor": 2.0}}


def training(worker, *, factor, seed):
    """A training of one weight, worth more on the way than at its end; a loss of nan ends it."""
    values = iter([factor / 3, factor / 7 - seed / 100])
    return Training(
        step=lambda batch, number: {"loss": torch.tensor(factor * (1 - number / 2))},
        update=lambda step: {},
        batches=lambda start: iter([None] * 2),
        steps=2,
        parts={"model": torch.nn.Linear(1, 1)},
        evaluate=lambda split: Evaluated({f"{split}/top1": next(values)}),
        log_every=1,
        evaluate_every=2,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of methods, one of which fails, whose table says so; its folder and its store."""
    folder = tmp_path_factory.mktemp("whole")
    uri = new_database(folder)
    rivals = {"ill": {"factor": math.nan}, "half": {"factor": 1.0}}
    comparison = Comparison(rivals=rivals, seeds=2, on_failure="hole")
    session = here.session(folder / "run", CONFIG)
    session.tracker = Tracker(uri, "own", spool=folder / "run" / "tracking")
    session.parent = session.tracker.run("parent", name="run")
    jobs = [
        (entry, TrainJob(entry.name, training, {"seed": entry.number} | factor_of(entry), 0))
        for entry in comparison.trainings(CONFIG)
    ]
    found = session.compare("trainings", comparison, jobs)
    rows = [{"label": e.label, "seed": e.number} | result.metrics for e, result in found]
    mean = {"label": "mean", "seed": 0, "test/top1": 0.123456789}  # of no training: a mean of some
    told = Comparison(rivals=rivals | {"mean": {}}, seeds=2)
    session.tell(told, [*rows, mean], ["test/top1"])
    assert session.tracker.close(wait_s=60) == 0
    return folder / "run", ["--uri", uri, "--run", "run"]


def factor_of(entry):
    return {"factor": entry.config["method"]["factor"]}


def test_the_table_of_a_run_is_made_again_as_its_results_have_it(script, whole, tmp_path, capsys):
    folder, there = whole
    results = (folder / "results.md").read_text()
    assert "3 of 8 trainings have no result: ill/seed-0, ill/seed-1, mean/seed-1" in results
    assert "| mean   |     1 |   12.35 |" in results
    script["main"]([*there, "--markdown", str(tmp_path / "again.md")])
    assert results.strip() in capsys.readouterr().out
    assert (tmp_path / "again.md").read_text() == results


def test_the_table_of_a_document_is_made_again_from_the_store(script, whole, tmp_path, capsys):
    folder, there = whole
    results, document = (folder / "results.md").read_text(), tmp_path / "README.md"
    document.write_text(f"# Ours\n\n{results.replace('13.79', '99.99')}\nAs measured.\n")
    script["main"]([*there, "--into", str(document)])
    assert document.read_text() == f"# Ours\n\n{results}\nAs measured.\n"
    document.write_text("nothing\n")
    assert "0 tables begin with method" in refused(script, *there, "--into", str(document))
    assert document.read_text() == "nothing\n"


def test_another_subject_and_fewer_trainings_are_another_table(script, whole, capsys):
    _, there = whole
    script["main"]([*there, "--against", "half"])
    assert "half − method" in capsys.readouterr().out
    script["main"]([*there, "--where", "seed_number=1"])
    output = capsys.readouterr().out
    assert "own − method" not in output  # of one seed there is no interval
    assert "1 of 3 trainings has no result: ill/seed-1" in output


def test_the_best_of_the_steps_stands_beside_the_last(script, whole, capsys):
    script["main"]([*whole[1], "--best"])
    last, best = capsys.readouterr().out.split("best top-1 %")
    own = [[c.strip() for c in line.split("|")] for line in (last + best).splitlines()]
    means = [next(c for c in row if "." in c) for row in own if row[1:2] == ["half"]]
    assert means == ["13.79", "33.33"]  # of 1/7 and 1/7 - 0.01 at the end, and of 1/3 on the way


def test_costs_are_a_table_and_columns_of_the_file(script, whole, tmp_path, capsys):
    file = tmp_path / "table.csv"
    script["main"]([*whole[1], "--costs", "--csv", str(file), "--markdown", str(tmp_path / "m.md")])
    output = capsys.readouterr().out
    head = [line for line in output.splitlines() if "CPU s" in line]
    assert [cell.strip() for cell in head[0].split("|")[1:-1]] == [
        "method",
        "seconds",
        "CPU s",
        "peak MiB",
    ]
    assert head[0] in (tmp_path / "m.md").read_text()
    table = pd.read_csv(file).set_index("run")
    assert table.loc["own/seed-0", "memory/peak_mib"] > 10
    assert math.isnan(table.loc["ill/seed-0", "time/wall_s"])


class Read(html.parser.HTMLParser):
    """Takes a page apart: what is open at the end, all tags, sources of pictures, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_picture_and_a_page_that_needs_nothing_else_are_written(script, whole, tmp_path):
    picture, page = tmp_path / "table.png", tmp_path / "page.html"
    script["main"]([*whole[1], "--picture", str(picture), "--html", str(page)])
    assert picture.read_bytes() == (whole[0] / "comparison.png").read_bytes()
    read = Read(page.read_text())
    assert read.open == []
    assert not read.tags & {"script", "link", "iframe"}
    assert len(read.sources) == 2  # the table's, and train/loss over the steps
    assert all(source.startswith("data:image/png;base64,") for source in read.sources)
    for told in ("3 of 8 trainings have no result", "method.factor", "settings of all trainings"):
        assert told in read.text
