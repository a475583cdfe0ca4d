"""A run's invariants from the command line: a line each, a status, and what can be done."""

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import running
from databases import new_database
from mlflow import MlflowClient

from raykb.runtime.checking import INVARIANTS
from raykb.runtime.lock import locked
from raykb.runtime.storage import LocalStorage
from raykb.runtime.tracking import Tracker

SPEC = importlib.util.spec_from_file_location("check_run", running.PIPELINES / "check_run.py")
check_run = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_run)

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning")
KEY = "5f3c" * 8


@pytest.fixture
def run(tmp_path):
    """A run directory without a training, which its store knows."""
    uri = new_database(tmp_path)
    folder = tmp_path / "run"
    config = {"tracking": {"uri": None}}
    record = {"key": KEY, "config": config, "tracking_uri": uri}
    LocalStorage(folder).write("run.json", json.dumps(record).encode())
    with Tracker(uri, "raykb", spool=folder / "tracking") as tracker:
        tracker.run(KEY, name="run")
    return folder


def called(capsys, *arguments, status):
    assert check_run.main(list(map(str, arguments))) == status
    said = capsys.readouterr()
    return said.err if status == 2 else said.out


def go_on(run):
    """Have the store believe that the run goes on; return how it is told to have ended."""
    client = MlflowClient(json.loads((run / "run.json").read_text())["tracking_uri"])
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    client.update_run(found.info.run_id, status="RUNNING")
    return lambda: client.get_run(found.info.run_id).info.status


def test_a_run_that_is_well_has_a_line_for_each_invariant(run, capsys):
    lines = called(capsys, run, status=0).splitlines()
    assert lines == [f"{name} holds: {each.text}" for name, each in INVARIANTS.items()]
    (run / "own").mkdir()
    assert called(capsys, f"file://{run}/own/", status=0).splitlines() == lines


def test_what_does_not_hold_is_said_with_what_to_do(run, capsys):
    (run / "ledger.jsonl").write_text("{}\n")
    half = f"tracking/.tracking.json.{'0' * 32}.tmp"
    (run / half).touch()
    lines = called(capsys, run, status=3).splitlines()
    assert lines[0].startswith("I1 does not hold: ledger.jsonl: a line of it cannot be read")
    assert lines[5] == (
        f"I6 does not hold: {half}: was begun and never finished; check_run.py --clean removes it"
    )
    assert sum(" holds: " in line for line in lines) == len(INVARIANTS) - 2


def test_files_alone_need_no_store(run, capsys):
    (run.parent / "mlflow.db").unlink()
    assert "there is no such file, so no run was tracked there" in called(capsys, run, status=2)
    lines = called(capsys, run, "--files", status=0).splitlines()
    assert [line for line in lines if "holds" not in line] == [
        f"I7 is not judged: {INVARIANTS['I7'].text}: no store is asked"
    ]


def test_another_store_can_be_named(run, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    uri = new_database(tmp_path / "other")
    said = called(capsys, run, "--uri", uri, status=3)
    assert "I7 does not hold: the run: is not in the tracking store; send what is left by" in said
    assert f"python -m raykb.runtime.tracking {run}/tracking, or go on by --resume" in said


def test_of_a_run_under_way_it_is_said_who_holds_it(run, capsys):
    status = go_on(run)
    with locked(LocalStorage(run)):
        lines = called(capsys, run, status=0).splitlines()
        refused = called(capsys, run, "--close", status=2)
    judged = {line[:2] for line in lines if " holds: " in line}
    assert judged == {name for name, each in INVARIANTS.items() if not each.at_rest}
    assert f"{run}: process " in lines[0]
    assert "another run holds it" in refused
    assert status() == "RUNNING"


def test_what_was_removed_and_closed_is_said_and_all_holds_then(run, capsys):
    status, file = go_on(run), run / f".results.json.{'0' * 32}.tmp"
    file.touch()
    assert called(capsys, run, status=3).count("does not hold") == 2
    lines = called(capsys, run, "--close", "--clean", status=0).splitlines()
    assert lines[:2] == ["closed run", f"removed {file.name}"]
    assert status() == "KILLED"
    assert not file.exists()


REFUSED = {
    "nowhere": (["nowhere"], "there is no run.json in it or above it"),
    "scheme": (["ftp://a/b"], "storage: 'ftp://a/b', must be a path or one of"),
    "password": (["run", "--uri", "nonsense://me:abc@host"], r"'nonsense://***@host', must begin"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_run_or_no_store_is_refused(run, case, monkeypatch, capsys):
    arguments, reason = REFUSED[case]
    monkeypatch.chdir(run.parent)
    said = called(capsys, *arguments, status=2)
    assert reason in said
    assert "abc" not in said


@pytest.mark.parametrize("other", [["--uri", "http://host"], ["--close"]])
def test_files_alone_go_with_no_store(other, capsys):
    with pytest.raises(SystemExit) as ended:
        check_run.main(["run", "--files", *other])
    assert ended.value.code == 2
    assert "give neither --uri nor --close" in capsys.readouterr().err


HELD = """
import os, signal, sys, time
from pathlib import Path
from raykb.runtime.lock import locked
from raykb.runtime.storage import LocalStorage
from raykb.runtime.tracking import Tracker
folder, uri, key = sys.argv[1:]
with locked(LocalStorage(Path(folder))):
    tracker = Tracker(uri, "raykb", spool=Path(folder) / "tracking")
    run = tracker.run(key, name="run")
    tracker.run("own/seed-0", parent=run)
    assert tracker.ready(300)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_is_found_and_closed(run, capsys):
    uri = json.loads((run / "run.json").read_text())["tracking_uri"]
    command = [sys.executable, "-c", HELD, str(run), uri, KEY]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    said = called(capsys, run, status=3)
    assert "I7 does not hold: run, own/seed-0: RUNNING in the tracking store, but no" in said
    assert said.count("does not hold") == 1
    assert called(capsys, run, "--close", status=0).startswith("closed run\nclosed own/seed-0\n")
