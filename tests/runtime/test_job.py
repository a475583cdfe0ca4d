"""How an invocation of a script ends when it is told to."""

import contextlib
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import ray
from databases import new_database
from mlflow import MlflowClient

from raykb.runtime import job

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning")

STUBBORN = """
    import sys
    import time
    import types
    from pathlib import Path

    from raykb.runtime import job, signals

    signals._STOP_S = 1.0

    def stubborn(session, ready):
        assert session.tracker.ready(100)  # so that it has a run to close
        print("begun", flush=True)
        try:
            time.sleep(600)
        finally:
            time.sleep(600)  # like a Ray that has got the signal too, and does not answer

    ready = types.SimpleNamespace(phases=[])
    options = {"description": "", "default": Path("config.yaml"), "schema": {}}
    sys.exit(job.launch(stubborn, **options, prepare=lambda config: ready))
"""


@pytest.mark.parametrize(
    "own", [pytest.param(True, marks=pytest.mark.slow), False], ids=["own Ray", "shared Ray"]
)
def test_a_run_that_does_not_come_to_its_end_is_closed_and_says_how_to_go_on(
    local_ray, tmp_path, own
):
    (tmp_path / "stubborn.py").write_text(textwrap.dedent(STUBBORN))
    (tmp_path / "config.yaml").write_text("storage: runs\ntracking: {}\n")
    new_database(tmp_path)
    with subprocess.Popen(
        [sys.executable, "stubborn.py", "--out", "run"],
        cwd=tmp_path,
        env=os.environ | ({} if own else {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does, to those of its Ray, too
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stubborn: stopped by SIGTERM" in said
    assert "--resume" in said
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [found.experiment_id for found in client.search_experiments()]
    assert [run.info.status for run in client.search_runs(experiments)] == ["KILLED"]


DEAF = """
    import signal
    import sys
    import threading
    import time
    import types
    from pathlib import Path

    from raykb.runtime import job

    def deaf(session, ready):
        def tell():  # the signal goes to a thread that is not the main one, which sleeps
            time.sleep(0.5)
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

        threading.Thread(target=tell).start()
        time.sleep(600)

    ready = types.SimpleNamespace(phases=[])
    options = {"description": "", "default": Path("config.yaml"), "schema": {}}
    sys.exit(job.launch(deaf, **options, prepare=lambda config: ready))
"""


def test_a_signal_that_does_not_reach_the_main_thread_ends_the_run_nevertheless(
    local_ray, tmp_path
):
    (tmp_path / "deaf.py").write_text(textwrap.dedent(DEAF))
    (tmp_path / "config.yaml").write_text("storage: runs\ntracking: {uri: sqlite:///mlflow.db}\n")
    new_database(tmp_path)
    ended = subprocess.run(
        [sys.executable, "deaf.py", "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert "deaf: stopped by SIGTERM" in ended.stderr


def data(*, root: str, api_key: str = "", tokens: int = 3) -> None:
    """Stand for a section of the configuration."""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Launch a script, by default one that does nothing, on a small configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "connected", lambda where: contextlib.nullcontext())
    close = job.Tracker.close

    def patiently(self, status, wait_s):  # a busy machine's database is late, and no other thing
        return close(self, status, wait_s=100.0)

    monkeypatch.setattr(job.Tracker, "close", patiently)
    Path("config.yaml").write_text("storage: runs\ntracking: {uri: null}\ndata: {root: x}\n")

    def launch(*argv, script=lambda session: None):
        options = {"description": "", "default": Path("config.yaml"), "schema": {"data": data}}
        ready = types.SimpleNamespace(phases=[])
        return job.launch(
            lambda session, ready: script(session),
            **options,
            prepare=lambda config: ready,
            argv=argv,
        )

    return launch


def test_who_stops_it_while_data_are_read_gets_a_line_and_no_traceback(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("storage: runs\n")

    def prepare(config):
        raise KeyboardInterrupt  # of a signal; a background process of a shell ignores SIGINT

    options = {"description": "", "default": tmp_path / "config.yaml", "schema": {}}
    code = job.launch(lambda session, ready: None, **options, prepare=prepare, argv=[])
    assert code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "\ntest_job: stopped by SIGINT\n"


@pytest.mark.parametrize(
    "record",
    [
        {"key": "../../elsewhere", "config": {"storage": "runs", "tracking": {}}},
        {"key": "x"},
        {"config": {}},
        [],
    ],
)
def test_a_foreign_record_is_refused_before_any_name_in_it_becomes_a_path(launch, record, capsys):
    Path("run").mkdir()
    Path("run", "run.json").write_text(json.dumps(record))
    assert launch("--resume", "run") == job.EXIT_REFUSED
    assert "--resume run: run.json is damaged (" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["config.yaml", "run"]


SECRETS = ("--set", "data={root: 's3://me:xyz/d@ef@b/x?sig=xyz', api_key: xyz, tokens: 7}")


def test_a_dry_run_and_a_refusal_print_no_secret(launch, capsys):
    server = ("--set", "tracking={uri: 'http://me:xyz@127.0.0.1:9'}")
    assert launch("--dry-run", *SECRETS, *server) == 0
    shown = capsys.readouterr()
    assert "http://***@127.0.0.1:9" in shown.out
    assert launch("--out", "s3://me:xyz/d@b/x", *SECRETS) == job.EXIT_REFUSED
    refused = capsys.readouterr()
    assert "s3://***@b/x" in refused.err
    for text in (*shown, *refused):
        assert "xyz" not in text
        assert "d@" not in text


def failing(session):
    raise RuntimeError("no route to http://me:xyz@host?sig=xyz")


def test_a_run_keeps_its_secrets_to_itself_and_goes_on_with_those_given_again(
    launch, local_ray, capsys
):
    assert launch("--out", "run", *SECRETS, script=failing) == job.EXIT_FAILED
    kept = json.loads(Path("run", "run.json").read_text())["config"]
    assert kept["data"] == {"root": "s3://***@b/x?sig=***", "api_key": "***", "tokens": 7}

    assert launch("--resume", "run") == job.EXIT_REFUSED
    assert "data.root: 's3://***@b/x?sig=***', where ***" in capsys.readouterr().err
    other = (SECRETS[0], SECRETS[1].replace("7", "8"))
    assert launch("--resume", "run", *other) == job.EXIT_REFUSED
    said = capsys.readouterr()
    assert "data.tokens: 7 -> 8" in said.err
    assert "data.root" not in said.err
    seen = []
    assert launch("--resume", "run", *SECRETS, script=lambda s: seen.append(s.config["data"])) == 0
    assert seen == [{"root": "s3://me:xyz/d@ef@b/x?sig=xyz", "api_key": "xyz", "tokens": 7}]

    files = [path for path in Path().rglob("*") if path.is_file()]
    assert {"mlflow.db", "config.yaml", "error.txt"} <= {path.name for path in files}
    for text in [
        *said,
        *capsys.readouterr(),
        *(path.read_bytes().decode("latin-1") for path in files),
    ]:
        assert "xyz" not in text


# ---------------------------------------------------------------------- storage and terminal


def full(monkeypatch):
    def fails(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fails)


def test_a_storage_that_fails_before_the_start_is_refused_with_a_remedy(
    launch, monkeypatch, capsys
):
    Path("broken", "run.json").mkdir(parents=True)
    assert launch("--resume", "broken") == job.EXIT_REFUSED
    assert "/broken/run.json'; see to its rights and its room" in capsys.readouterr().err
    Path("run").mkdir()  # a new one would be refused by its lock, for the folder itself is synced
    with monkeypatch.context() as patched:
        full(patched)
        assert launch("--out", "run") == job.EXIT_REFUSED
    said = capsys.readouterr().err
    assert "No space left on device (" in said
    assert "bytes are free): " in said
    assert "/run/run.json'; see to its rights and its room, or name another directory" in said
    assert "Traceback" not in said


def test_a_storage_that_fails_later_ends_the_run_with_its_words_and_no_traceback(
    launch, local_ray, monkeypatch, capsys
):
    def script(session):
        with monkeypatch.context() as patched:
            full(patched)
            try:
                session.write("results.json", "{}")
            except OSError as error:
                raise RuntimeError("as a library would wrap it") from error

    assert launch("--out", "run", script=script) == job.EXIT_FAILED
    said = capsys.readouterr().err
    assert re.search(r"No space left on device \([\d,]+ bytes are free\): '.*/results\.json'", said)
    assert "nothing finished is lost; go on with" in said
    assert "Traceback" not in said
    assert statuses() == ["FAILED"]


def statuses():
    client = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd()}/mlflow.db")
    experiments = [found.experiment_id for found in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


def test_a_terminal_that_is_closed_ends_a_run_as_killed(launch, local_ray, capsys):
    def script(session):
        signal.raise_signal(signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    try:
        assert launch("--out", "run", script=script) == 128 + signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "stopped by SIGHUP" in capsys.readouterr().err
    assert statuses() == ["KILLED"]


def test_under_nohup_a_run_goes_on_without_its_terminal(launch, local_ray):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert launch("--out", "run", script=lambda _: signal.raise_signal(signal.SIGHUP)) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert statuses() == ["FINISHED"]


class Gone(io.StringIO):
    """A terminal that was closed; what is written to it would go to ``file``."""

    def __init__(self, file):
        super().__init__()
        self.fileno = file.fileno

    def write(self, text):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_words_to_a_terminal_that_is_gone_are_no_error_and_go_nowhere_from_then_on(
    tmp_path, monkeypatch
):
    nowhere = Path(os.devnull).stat().st_rdev
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", Gone(out))
            patched.setattr(sys, "stderr", Gone(err))
            with job._somebody_may_listen():
                print("last words")
        assert [os.fstat(file.fileno()).st_rdev for file in (out, err)] == [nowhere, nowhere]


def test_last_words_say_where_everything_is_without_secrets(capsys):
    place = types.SimpleNamespace(uri="s3://me:xyz@bucket/run?region=eu")
    job._last_words("x", place, [], "postgresql://me:xyz@host/db", job.EXIT_FAILED, "/#/1")
    said = capsys.readouterr()
    assert "--resume 's3://***@bucket/run?region=eu'\n(*** is to be given again)" in said.err
    assert "run directory   s3://***@bucket/run?region=eu\nMLflow          postgresql" in said.out
    assert said.out.endswith("its charts      /#/1\n")
    assert "xyz" not in said.out + said.err
