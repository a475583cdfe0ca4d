import contextlib
import functools
import http.server
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from databases import new_database
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from raykb.runtime import heir, sender, tracking
from raykb.runtime.sender import sqlite_file
from raykb.runtime.spool import Spool, Steps
from raykb.runtime.tracking import Tracker, default_uri, environment_tags, replay, resolve_uri

EXPERIMENT = "raykb/tests"
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"  # MLflow's own queries
)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return new_database(tmp_path)


@pytest.fixture
def make(uri: str, tmp_path: Path) -> Iterator[Callable[..., Tracker]]:
    trackers = []

    def make(**changes: Any) -> Tracker:
        arguments = {"uri": uri, "experiment": EXPERIMENT, "spool": tmp_path / "spool"} | changes
        tracker = Tracker(arguments.pop("uri"), arguments.pop("experiment"), **arguments)
        tracker.close = functools.partial(tracker.close, wait_s=60)  # on a slow disk, too
        trackers.append(tracker)
        return tracker

    yield make
    for tracker in trackers:
        tracker.close(wait_s=0)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="raykb")
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("raykb")]


def points(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=uri).get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in history)


def run_of(uri: str, name: str) -> Any:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id], f"run_name = '{name}'")
    return run


# ---------------------------------------------------------------------- what arrives


def test_a_run_arrives_with_all_that_was_logged(make, uri, tmp_path):
    (tmp_path / "plot.png").write_bytes(b"png")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "table.csv").write_text("a,b")
    tracker = make()
    run = tracker.run("parent", name="search-1", params={"lr": 0.1}, tags={"paper": "x"})
    for step in range(3):
        run.log(step, {"train/loss": step / 2, "valid/top1": 1})
    run.params({"model.depth": 40})
    run.tags({"phase": "search"})
    run.text("seed: 0\n", "config/resolved.yaml")
    run.artifact(tmp_path / "plot.png")
    run.artifact(tmp_path / "more", "tables")
    run.finish()
    assert tracker.close() == 0

    stored = run_of(uri, "search-1")
    assert stored.info.run_id == run.id()
    assert stored.info.status == "FINISHED"
    assert stored.info.end_time >= stored.info.start_time
    assert stored.data.params == {"lr": "0.1", "model.depth": "40"}
    assert {"paper": "x", "phase": "search"}.items() <= stored.data.tags.items()
    assert points(uri, run.id(), "train/loss") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    artifacts = Path(stored.info.artifact_uri)
    assert artifacts.is_relative_to(tmp_path / "mlartifacts" / EXPERIMENT)
    assert sorted(str(f.relative_to(artifacts)) for f in artifacts.rglob("*.*")) == [
        "config/resolved.yaml",
        "plot.png",
        "tables/table.csv",
    ]


def test_children_are_found_by_their_parent(make, uri):
    tracker = make()
    parent = tracker.run("parent", params={"a": 1})
    for fold in range(20):
        tracker.run(f"fold-{fold:02}", parent=parent, params={"a": fold}).log(0, {"top1": fold})
    assert tracker.ready()
    client = MlflowClient(tracking_uri=uri)
    children = client.search_runs(
        [client.get_experiment_by_name(EXPERIMENT).experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.id()}'",
    )
    assert sorted(child.info.run_name for child in children) == [f"fold-{n:02}" for n in range(20)]
    assert all(set(child.data.params) == {"a"} for child in children)
    assert all(set(child.data.metrics) == {"top1"} for child in children)


def test_more_than_fits_a_batch_arrives(make, uri):
    tracker = make()
    run = tracker.run("big", params={f"p{n}": "ü" * 7000 for n in range(250)})
    run.tags({f"t{n}": "t" * 9000 for n in range(250)})
    run.log(0, {f"m{n}": n for n in range(2500)})
    assert tracker.close() == 0
    stored = run_of(uri, "big")
    assert len(stored.data.params) == 250
    assert {len(value) for value in stored.data.params.values()} == {6000}
    assert sum(key.startswith("t") for key in stored.data.tags) == 250
    assert len(stored.data.metrics) == 2500


def test_ten_thousand_points_arrive(make, uri):
    tracker = make()
    run = tracker.run("long")
    for step in range(10_000):
        run.log(step, {"loss": step})
    assert tracker.close() == 0
    assert points(uri, run.id(), "loss") == [(step, float(step)) for step in range(10_000)]


def test_odd_values_are_passed_over_with_one_warning_a_name(make, uri, said):
    tracker = make()
    run = tracker.run("odd")
    for step in range(3):
        run.log(
            step,
            {
                "tensor": torch.tensor(1.5, requires_grad=True),
                "one": np.array([2.0]),
                "numpy": np.float32(0.25),
                "integer": np.int64(3),
                "vector": torch.zeros(2),
                "flag": True,
                "torch flag": torch.tensor(True),
                "text": "high",
                "none": None,
                "nested": {"a": 1},
                "nan": float("nan"),
                "inf": -np.inf,
                "a=b#": 4,
                "/x/../y": 5,
                7: 6,
            },
        )
    run.log("three", {"loss": 1})
    run.log(2**70, {"loss": 1})
    run.log(0, None)
    assert tracker.close() == 0
    stored = run_of(uri, "odd")
    assert stored.data.metrics == {
        "tensor": 1.5,
        "one": 2.0,
        "numpy": 0.25,
        "integer": 3.0,
        "a_b_": 4.0,
        "x/y": 5.0,
        "7": 6.0,
    }
    assert stored.data.tags["raykb.nonfinite.nan"] == "nan at step 0"
    assert stored.data.tags["raykb.nonfinite.inf"] == "-inf at step 0"
    warnings = said()
    assert len(warnings) == len(set(warnings)) == 14
    assert "tracking: metric 'flag': bool is no number; not logged" in warnings
    assert "tracking: metric 'a=b#': no name for MLflow; logged as 'a_b_'" in warnings


def test_candidates_may_finish_in_any_order(make, uri):
    tracker = make()
    run = tracker.run("history")
    for step in [5, 3, 9, 3, 0]:
        run.log(step, {"reward": step})
    assert tracker.close() == 0
    assert points(uri, run.id(), "reward") == [(0, 0), (3, 3), (5, 5), (9, 9)]


def test_steps_are_new_once_and_memory_is_bounded():
    steps = Steps()
    assert all(steps.add(step) for step in range(0, 100_000, 10))
    assert not any(steps.add(step) for step in range(0, 100_000, 10))
    assert steps.add(99_985)
    assert len(steps._recent) < 3000


def test_secrets_do_not_leave(make, uri, tmp_path):
    tracker = make()
    run = tracker.run("secrets", params={"api_token": "abc", "tokens": 3, "data.password": "abc"})
    run.tags({"where": "s3://me:abc@host/x", "aws.Secret": "abc", "credential": "abc"})
    run.text('token: abc\ntokens: 3\nuri: s3://me:abc@host/x\n"my_secret": "abc",\n', "c.yaml")
    assert tracker.close() == 0
    stored = run_of(uri, "secrets")
    assert stored.data.params == {"api_token": "***", "tokens": "3", "data.password": "***"}
    assert stored.data.tags["where"] == "s3://***@host/x"
    assert stored.data.tags["aws.Secret"] == stored.data.tags["credential"] == "***"
    assert (Path(stored.info.artifact_uri) / "c.yaml").read_text() == (
        'token: "***"\ntokens: 3\nuri: s3://***@host/x\n"my_secret": "***",\n'
    )
    assert "abc" not in (tmp_path / "spool" / "tracking.jsonl").read_text()
    assert (tmp_path / "spool" / "tracking.jsonl").stat().st_mode & 0o077 == 0


def test_a_missing_artifact_does_not_hold_up_the_rest(make, uri, said, tmp_path):
    tracker = make()
    run = tracker.run("gap")
    run.artifact(tmp_path / "absent.png")
    run.log(0, {"loss": 1})
    assert tracker.close() == 0
    assert points(uri, run.id(), "loss") == [(0, 1.0)]
    assert any("absent.png of run 'gap' not stored" in message for message in said())


def test_an_artifact_store_that_fails_is_tried_again_and_then_passed_over(
    make, uri, said, tmp_path, monkeypatch
):
    monkeypatch.setattr(tracking, "_BACK_OFF_S", (0.01, 0.05))
    (tmp_path / "file").touch()
    tracker = make(artifact_root=str(tmp_path / "file"))
    run = tracker.run("gap")
    run.text("x", "x.txt")
    run.log(0, {"loss": 1})
    assert tracker.close() == 0
    assert points(uri, run.id(), "loss") == [(0, 1.0)]
    assert any("x.txt of run 'gap' not stored" in message for message in said())


def test_what_is_refused_is_named_and_the_rest_arrives(make, uri, said):
    tracker = make()
    run = tracker.run("resumed", params={"lr": 0.1, **{f"p{n}": n for n in range(40)}})
    run.params({"lr": 0.2, **{f"q{n}": n for n in range(40)}})
    assert tracker.ready()
    run.params({"lr": 0.3, **{f"r{n}": n for n in range(40)}})
    assert tracker.close() == 0
    stored = run_of(uri, "resumed")
    assert stored.data.params["lr"] == "0.1"
    assert len(stored.data.params) == 121
    assert sum("params 'lr' of run 'resumed' refused" in message for message in said()) == 1


@pytest.mark.parametrize("batches", [1, 3])
def test_the_first_value_of_a_param_stays_however_its_records_are_cut(uri, said, batches):
    to_mlflow = sender.Sender(uri, EXPERIMENT, None)
    opened = {"op": "run", "run": "r", "name": "r", "parent": "", "at": 1}
    changes = [{"op": "params", "run": "r", "values": {"lr": lr, lr: lr}} for lr in ("0.1", "0.2")]
    records = [opened, *changes]
    for n in range(batches):
        to_mlflow.send(records[n::batches])
    stored = run_of(uri, "r").data.params
    assert stored == {"lr": "0.1", "0.1": "0.1", "0.2": "0.2"}
    assert [message for message in said() if "params 'lr' of run 'r' refused" in message]


# ---------------------------------------------------------------------- whose run, and where


def test_runs_land_in_the_named_experiment_and_no_run_is_active(make, uri, monkeypatch, tmp_path):
    other = MlflowClient(tracking_uri=uri).create_experiment("other")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/wrong.db")
    tracker = make()
    run = tracker.run("here")
    assert tracker.close() == 0
    assert run_of(uri, "here").info.run_id == run.id()
    assert not (tmp_path / "wrong.db").exists()
    assert mlflow.active_run() is None


def test_nothing_is_written_to_the_current_directory(uri, monkeypatch, tmp_path):
    for name in ("launch", "elsewhere"):
        (tmp_path / name).mkdir()
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "launch")
    monkeypatch.chdir(tmp_path / "launch")
    tracker = Tracker("sqlite:///mlflow.db", EXPERIMENT, spool=Path("spool"), artifact_root="art")
    monkeypatch.chdir(tmp_path / "elsewhere")
    tracker.run("moved").text("x", "x.txt")
    assert tracker.close(wait_s=60) == 0
    assert list((tmp_path / "elsewhere").iterdir()) == []
    stored = run_of(tracker.uri, "moved")
    assert (Path(stored.info.artifact_uri) / "x.txt").is_relative_to(tmp_path / "launch" / "art")
    assert (tmp_path / "launch" / "spool" / "tracking.jsonl").exists()


def test_a_deleted_experiment_is_brought_back(make, uri):
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.create_experiment(EXPERIMENT))
    tracker = make()
    tracker.run("again")
    assert tracker.close() == 0
    assert run_of(uri, "again").info.lifecycle_stage == "active"


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (SystemExit, "KILLED")]
)
def test_runs_end_as_their_script_ends(make, uri, error, status):
    def script() -> None:
        with make() as tracker:
            tracker.run("child", parent=tracker.run("parent"))
            tracker.run("done").finish("FAILED")
            if error:
                raise error

    if error:
        with pytest.raises(error):
            script()
    else:
        script()
    assert {run_of(uri, name).info.status for name in ("parent", "child")} == {status}
    assert run_of(uri, "done").info.status == "FAILED"


def test_a_closed_tracker_is_left_alone(make, uri, said):
    tracker = make()
    run = tracker.run("over")
    assert tracker.close() == tracker.close() == 0
    run.log(0, {"loss": 1})
    run.finish("KILLED")
    assert run_of(uri, "over").info.status == "FINISHED"
    assert "tracking: log after close(); not logged" in said()


# ---------------------------------------------------------------------- resuming


def test_the_same_key_on_the_same_spool_is_the_same_run(make, uri):
    first = make()
    run = first.run("parent")
    for step in range(5):
        run.log(step, {"loss": step})
    assert first.close("KILLED") == 0
    assert run_of(uri, "parent").info.status == "KILLED"

    second = make()
    again = second.run("parent")
    assert again.id(60) == run.id()
    assert second.ready()
    assert run_of(uri, "parent").info.status == "RUNNING"
    for step in range(3, 7):
        again.log(step, {"loss": step, "late": step})
    assert second.close() == 0
    assert points(uri, run.id(), "loss") == [(step, float(step)) for step in range(7)]
    assert points(uri, run.id(), "late") == [(step, float(step)) for step in range(3, 7)]
    assert run_of(uri, "parent").info.status == "FINISHED"


SCRIPT = """
    import itertools, sys, time
    from pathlib import Path
    from raykb.runtime.tracking import Tracker

    tracker = Tracker(sys.argv[1], "raykb/tests", spool=Path(sys.argv[2]))
    parent = tracker.run("parent", params={"a": 1})
    child = tracker.run("child", parent=parent)
    for step in range(int(sys.argv[3])):
        child.log(step, {"loss": step, "top1": -step})
        time.sleep(0.001)
    print(tracker.close(wait_s=300))
"""


def start(*arguments: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _partly_sent(log: Path) -> bool:
    """Say whether some hundred steps are in a spool's log, of which some have been sent."""
    if not log.exists() or not log.with_suffix(".json").exists():
        return False
    sent = json.loads(log.with_suffix(".json").read_text())["sent"]
    return log.stat().st_size > 60_000 and 20_000 < sent < log.stat().st_size


@pytest.mark.timeout(900)
def test_after_kill_9_runs_are_killed_until_they_go_on_and_every_point_is_there_once(
    make, uri, tmp_path
):
    log = tmp_path / "spool" / "tracking.jsonl"
    process = start(uri, tmp_path / "spool", 1_000_000)
    deadline = time.monotonic() + 400
    while not _partly_sent(log):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    records = [json.loads(line) for line in log.read_bytes().splitlines(keepends=True)[:-1]]
    last = max(record.get("step", 0) for record in records)

    assert make().close(wait_s=300) == 0  # whoever opens its spool, and asks for no run
    for name in ("parent", "child"):
        info = run_of(uri, name).info
        assert info.status == "KILLED"
        assert 0 <= info.end_time - records[-1]["at"] <= 1000  # the time of its last record

    stop = last + 50
    again = make()
    child = again.run("child", parent=again.run("parent", params={"a": 1}))
    for step in range(last - 100, stop):
        child.log(step, {"loss": step, "top1": -step})
    assert again.close(wait_s=300) == 0
    run = run_of(uri, "child")
    assert run.info.status == "FINISHED"
    assert points(uri, run.info.run_id, "loss") == [(n, float(n)) for n in range(stop)]
    assert points(uri, run.info.run_id, "top1") == [(n, float(-n)) for n in range(stop)]
    assert run.data.tags["mlflow.parentRunId"] == run_of(uri, "parent").info.run_id


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_left_of_a_run_that_is_killed_its_heir_sends(uri, tmp_path):
    """As of a job that Ray kills before all is sent: it has been told to stop, and no more."""
    spool = tmp_path / "spool"
    process = start(uri, spool, 1_000_000)
    deadline = time.monotonic() + 400
    while not _partly_sent(spool / "tracking.jsonl"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sends = heir.appoint(spool, uri)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sends.wait(timeout=400) == 0
    assert {run_of(uri, name).info.status for name in ("parent", "child")} == {"KILLED"}
    records = map(json.loads, (spool / "tracking.jsonl").read_bytes().splitlines())
    steps = [record["step"] for record in records if record["op"] == "log"]
    child = run_of(uri, "child").info.run_id
    assert points(uri, child, "loss") == [(step, float(step)) for step in steps]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_may_create_one_database_at_once(tmp_path, count):
    uri = default_uri(tmp_path / "new")
    processes = [start(uri, tmp_path / f"spool-{n}", 20) for n in range(count)]
    for process in processes:
        assert process.communicate(timeout=400) == ("0\n", "")
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["child"] * count + ["parent"] * count


def test_a_lost_answer_is_no_second_run_and_no_second_point(make, uri, monkeypatch):
    monkeypatch.setattr(tracking, "_BACK_OFF_S", (0.01, 0.05))
    lost = {"create_run": 1, "log_batch": 3, "set_terminated": 1, "get_experiment_by_name": 1}

    class Flaky(MlflowClient):
        pass

    def losing(name: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            answer = getattr(MlflowClient, name)(self, *args, **kwargs)
            lost[name] -= 1
            if lost[name] >= 0:
                raise MlflowException("the line went dead")
            return answer

        return call

    for name in lost:
        setattr(Flaky, name, losing(name))
    monkeypatch.setattr(mlflow, "MlflowClient", Flaky)
    tracker = make()
    run = tracker.run("parent", params={"a": 1})
    for step in range(50):
        run.log(step, {"loss": step})
    assert tracker.close() == 0
    assert points(uri, run_of(uri, "parent").info.run_id, "loss") == [
        (step, float(step)) for step in range(50)
    ]
    assert all(count <= 0 for count in lost.values())


def test_a_lost_state_repeats_nothing(make, uri, tmp_path):
    first = make()
    first.run("parent").log(0, {"loss": 1})
    assert first.close() == 0
    (tmp_path / "spool" / "tracking.json").write_text("{")
    second = make()
    second.run("parent").log(1, {"loss": 2})
    assert second.close() == 0
    assert points(uri, run_of(uri, "parent").info.run_id, "loss") == [(0, 1.0), (1, 2.0)]


# ---------------------------------------------------------------------- no server


@pytest.fixture
def fake_server() -> Iterator[Callable[[int | None], str]]:
    servers = []
    release = threading.Event()

    def serve(status: int | None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if status is None:
                    release.wait(60)
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"no")

            do_POST = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    release.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("status", ["refused", "hangs", 500, 429, 403, 404, 400, 200])
def test_a_bad_server_neither_stops_nor_delays_a_run(
    make, uri, fake_server, said, tmp_path, monkeypatch, status
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    bad = closed_port() if status == "refused" else fake_server({"hangs": None}.get(status, status))
    tracker = make(uri=bad)
    seconds = []
    run = tracker.run("parent", params={"a": 1})
    for step in range(200):
        before = time.perf_counter()
        run.log(step, {"loss": step})
        seconds.append(time.perf_counter() - before)
    assert sorted(seconds)[100] < 1e-3
    assert run.id() is None
    assert not tracker.ready(0.1)
    before = time.monotonic()
    assert tracker.close(wait_s=0.2) > 200
    assert time.monotonic() - before < 4
    tracker._thread.join(30)  # a server that hangs is noticed when its time-out ends, maybe later
    outage, remaining = sorted(said(), key=lambda text: "did not take" in text)
    assert "does not answer" in outage
    assert f"python -m raykb.runtime.tracking {tmp_path}/spool" in remaining

    assert replay(tmp_path / "spool", uri=uri) == 0
    assert points(uri, run_of(uri, "parent").info.run_id, "loss") == [
        (step, float(step)) for step in range(200)
    ]


def test_what_a_run_says_when_the_server_comes_back(make, uri, said, monkeypatch):
    monkeypatch.setattr(tracking, "_BACK_OFF_S", (0.05, 0.1))
    away = threading.Event()
    away.set()
    connect = sender.Sender._connect

    def unreachable(self: sender.Sender) -> MlflowClient:
        if away.is_set():
            raise ConnectionError("no route to http://me:secret@host")
        return connect(self)

    monkeypatch.setattr(sender.Sender, "_connect", unreachable)
    tracker = make()
    run = tracker.run("parent")
    limit = time.monotonic() + 60
    while not said():
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert not tracker.ready(0.1)
    away.clear()
    assert tracker.ready()
    assert run.id() is not None
    assert tracker.close() == 0  # the sender says that the server is back when it has sent all
    outage, back = said()
    assert "no route to http://***@host" in outage
    assert back.endswith("answers again")


def test_a_backlog_is_bounded_and_what_was_dropped_is_counted(make, said, tmp_path):
    tracker = make(uri=closed_port(), backlog_mib=0.01)
    run = tracker.run("parent")
    for step in range(1000):
        run.log(step, {"a": 1, "b": 2})
    run.text("kept", "kept.txt")
    assert tracker.close(wait_s=0) > 0
    log = (tmp_path / "spool" / "tracking.jsonl").read_text()
    assert len(log) < 12_000
    assert "kept.txt" in log
    dropped = 2 * (1000 - log.count('"step"'))
    assert f"tracking: {dropped} points were dropped: see backlog_mib" in said()


def test_a_full_disk_stops_no_run(make, uri, said, monkeypatch):
    tracker = make()
    run = tracker.run("parent")
    run.log(0, {"loss": 0})
    assert tracker.ready()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    run.log(1, {"loss": 1})
    tracker.run("lost")
    monkeypatch.undo()
    run.log(2, {"loss": 2})
    assert tracker.close() == 0
    assert points(uri, run.id(), "loss") == [(0, 0.0), (2, 2.0)]
    assert any("bytes were written; disk full?" in message for message in said())


def test_a_user_s_own_limits_of_requests_are_kept(make, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    make()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


@pytest.mark.slow
def test_a_server_killed_and_started_again_gets_every_point_once(uri, make, tmp_path, said):
    port = closed_port().rpartition(":")[2]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--port", port]
    command += ["--workers", "1"]

    def serve() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    server = serve()
    try:
        tracker = make(uri=f"http://127.0.0.1:{port}")
        run = tracker.run("parent", params={"a": 1})
        assert run.id(500)
        assert tracker.ready(500)
        before = len(said())  # it takes long to start
        for step in range(300):
            if step == 100:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
            if step == 200:
                server = serve()
            run.log(step, {"loss": step})
            time.sleep(0.02)
        run.text("x", "x.txt")
        assert tracker.close(wait_s=500) == 0
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert any("does not answer" in text for text in said()[before:])
    assert points(uri, run.id(), "loss") == [(step, float(step)) for step in range(300)]
    assert list((tmp_path / "artifacts").rglob("x.txt"))


def test_a_locked_database_is_waited_for_and_gets_every_point_once(make, uri):
    tracker = make()
    run = tracker.run("parent")
    assert tracker.ready()
    with contextlib.closing(sqlite3.connect(sqlite_file(uri))) as other:
        other.execute("BEGIN EXCLUSIVE")
        for step in range(20):
            run.log(step, {"loss": step})
        assert not tracker.ready(0.5)
        other.rollback()
    assert tracker.close(wait_s=120) == 0
    assert points(uri, run.id(), "loss") == [(step, float(step)) for step in range(20)]


# ---------------------------------------------------------------------- the spool


def test_a_spool_serves_one_process(make, tmp_path):
    tracker = make()
    with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}; give each run"):
        make()
    tracker.close()
    assert make().close() == 0


def test_a_spool_that_is_in_use_is_waited_for(tmp_path):
    first = Spool(tmp_path)
    threading.Timer(0.3, first.close).start()
    Spool(tmp_path, patience_s=400).close()


def test_a_torn_line_is_passed_over(tmp_path):
    spool = Spool(tmp_path)
    spool.append({"op": "a"})
    spool.close()
    with (tmp_path / "tracking.jsonl").open("ab") as file:
        file.write(b'{"op": "torn')
    spool = Spool(tmp_path)
    assert [record["op"] for record in spool.records()] == ["a"]
    spool.append({"op": "b", "text": "x" * 1_000_000})
    spool.append({"op": "c"})
    assert [record["op"] for record in spool.records()] == ["a", "b", "c"]
    spool.close()


# ---------------------------------------------------------------------- replay


def test_a_spool_is_sent_later_from_the_command_line(make, uri, tmp_path, capsys):
    tracker = make(uri=closed_port())
    tracker.run("late").log(0, {"loss": 1})
    tracker.close(wait_s=0)
    tracker._thread.join(30)
    assert tracking._main([str(tmp_path / "spool"), "--uri", uri, "--wait-s", "60"]) == 0
    assert capsys.readouterr().out == "all is sent\n"
    assert run_of(uri, "late").data.metrics == {"loss": 1.0}
    assert tracking._main([str(tmp_path / "spool"), "--uri", closed_port(), "--wait-s", "0"]) == 1
    assert "records remain" in capsys.readouterr().out


def test_what_cannot_be_replayed_is_told(make, tmp_path, capsys):
    with pytest.raises(ValueError, match="is not the spool of a run"):
        replay(tmp_path / "absent")
    tracker = make(uri=closed_port().replace("127", "me:secret@127", 1))
    tracker.close(wait_s=0)
    with pytest.raises(ValueError, match="is without its password; give it whole, with --uri"):
        replay(tmp_path / "spool")
    with pytest.raises(SystemExit):
        tracking._main([str(tmp_path / "absent")])
    assert "is not the spool of a run" in capsys.readouterr().err


# ---------------------------------------------------------------------- what the UI shows


def experiment_of(uri: str) -> Any:
    return MlflowClient(tracking_uri=uri).get_experiment_by_name(EXPERIMENT)


def test_an_experiment_is_one_of_trainings_unless_a_user_says_other(make, uri):
    kind = "mlflow.experimentKind"
    tracker = make()
    tracker.run("parent")
    assert tracker.close() == 0
    experiment = experiment_of(uri)
    assert experiment.tags[kind] == "custom_model_development"
    MlflowClient(tracking_uri=uri).set_experiment_tag(experiment.experiment_id, kind, "other")
    tracker = make()
    tracker.run("again")
    assert tracker.close() == 0
    assert experiment_of(uri).tags[kind] == "other"


def test_a_run_has_a_page_of_its_children_and_a_later_one_counts(make, uri, tmp_path):
    tracker = make()
    run = tracker.run("parent")
    run.view("label")
    run.view("label", ["test/top1", "a=b"])
    assert tracker.close() == 0
    experiment = experiment_of(uri)
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{run.id()}"])
    assert view["searchFilter"] == f"tags.`mlflow.parentRunId` = '{run.id()}'"
    assert view["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "label"}]
    columns = ["params.`label`", "metrics.`test/top1`", "metrics.`a_b`"]
    assert view["selectedColumns"] == columns
    assert f"/experiments/{experiment.experiment_id}/runs?" in run.page()
    assert run.page().endswith(f"viewStateShareKey={run.id()}")
    (tmp_path / "moved").mkdir()
    moved = new_database(tmp_path / "moved")
    assert replay(tmp_path / "spool", uri=moved) == 0  # which takes it along
    there = run_of(moved, "parent").info.run_id
    assert there != run.id()
    assert there in experiment_of(moved).tags[f"mlflow.sharedViewState.{there}"]


def test_a_run_without_a_server_has_no_page(make):
    run = make(uri="http://127.0.0.1:9").run("parent")
    run.view("label")
    assert run.page() is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("| a |\n| 1 |", "| a |\n| 1 |"),
        ("x" * 4000 + "\n" + "y" * 4000, "x" * 4000 + "\n\n…"),
        ("z" * 9000, "z" * 4997 + "\n\n…"),
        ("at http://me:abc@host", "at http://***@host"),
    ],
)
def test_a_note_is_on_the_run_s_page_up_to_a_whole_line_and_without_secrets(make, uri, text, kept):
    tracker = make()
    tracker.run("parent").note(text)
    assert tracker.close() == 0
    assert run_of(uri, "parent").data.tags["mlflow.note.content"] == kept


# ---------------------------------------------------------------------- URIs and tags


@pytest.mark.parametrize(
    ("configured", "environment", "uri"),
    [
        (None, None, "sqlite:////launch/mlflow.db"),
        ("", "", "sqlite:////launch/mlflow.db"),
        (None, "http://host:5000", "http://host:5000"),
        ("https://host", "http://host:5000", "https://host"),
        ("sqlite:///runs.db", None, "sqlite:////launch/runs.db"),
        ("sqlite:////abs/runs.db?timeout=3", None, "sqlite:////abs/runs.db?timeout=3"),
        ("postgresql+psycopg2://u:p@host/db", None, "postgresql+psycopg2://u:p@host/db"),
        ("mysql://host/db", None, "mysql://host/db"),
        ("databricks", None, "databricks"),
        ("databricks://profile", None, "databricks://profile"),
    ],
)
def test_config_wins_over_environment_over_default(monkeypatch, configured, environment, uri):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if environment is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    assert resolve_uri(configured, launch_dir=Path("/launch")) == uri


@pytest.mark.parametrize(
    "uri", ["file:///x/mlruns", "./mlruns", "/x/mlruns", "ftp://host", "sqlite://", "sqlite:///"]
)
def test_a_uri_that_keeps_no_runs_is_refused_with_a_remedy(monkeypatch, uri):
    with pytest.raises(ValueError, match=r"tracking uri: .* write sqlite:////launch/mlflow\.db"):
        resolve_uri(uri, launch_dir=Path("/launch"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI: "):
        resolve_uri()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experiment": "../up"}, r"experiment: '\.\./up', must be .* for example 'up'"),
        ({"experiment": ""}, "experiment: ''"),
        ({"backlog_mib": 0}, "backlog_mib: 0, must be above 0"),
        ({"uri": "file:///x"}, "must begin with one of"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(make, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
    assert not (tmp_path / "spool").exists()


def test_tags_tell_where_a_run_came_from(monkeypatch, tmp_path):
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    script = tmp_path / "search.py"
    script.touch()
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    tags = environment_tags()
    assert "git.commit" not in tags
    assert tags["host"] == socket.gethostname()
    assert tags["script"] == "search.py"
    assert {"raykb.version", "ray.version", "torch.version"} <= tags.keys()

    git("init")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--allow-empty", "-m", "x")
    tags = environment_tags()
    assert len(tags["git.commit"]) == 40
    assert tags["git.dirty"] == "true"


def test_the_history_of_a_run_is_that_of_all_processes_on_its_spool(
    make: Callable[..., Tracker],
) -> None:
    first = make()
    first.run("a").log(5, {"train/loss": 2.0, "lr": 0.1})
    first.run("b").log(5, {"train/loss": 7.0})
    first.close()
    run = make().run("a")
    run.log(5, {"train/loss": 3.0})  # repeated by a run that goes on: the first value counts
    run.log(10, {"train/loss": 1.0})
    assert run.history() == {"train/loss": [(5, 2.0), (10, 1.0)], "lr": [(5, 0.1)]}
