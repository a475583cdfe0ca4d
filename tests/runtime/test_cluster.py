"""Used on a cluster: a submitted job, several nodes, and hosts that share no disk."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

import in_process
import pytest
import ray
import ray.cluster_utils
from databases import new_database
from mlflow import MlflowClient

from raykb.runtime import connection
from raykb.runtime.checking import check
from raykb.runtime.lock import holder
from raykb.runtime.session import Refused
from raykb.runtime.storage import LocalStorage

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--smoke",
    "--set=data.train_size=240",
    "--set=search.width=3",
    "--set=comparison.rivals={}",
    "--set=comparison.seeds=1",
]
slow = pytest.mark.slow
pytestmark = [
    pytest.mark.timeout(600),
    # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    """A python that has every dependency and not raykb."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    others = [p for p in sys.path if p.endswith("site-packages")]
    # a .pth of this environment that brings raykb in (an editable install) is not run from here
    (site / "dependencies.pth").write_text("\n".join(others))
    python = folder / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    probe = subprocess.run(
        [python, "-c", "import ray; import raykb"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert "No module named 'raykb'" in probe.stderr, probe.stderr
    return python


def start(interpreter, folder, *options):
    """Start ``ray start --block`` with token authentication; end it by its process id."""
    environment = os.environ | {
        "HOME": str(folder / "home"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_TMPDIR": str(folder),
    }
    for name in ("PYTHONPATH", "RAY_ADDRESS"):
        environment.pop(name, None)
    (folder / "home").mkdir(exist_ok=True)
    ray_command = [str(interpreter), "-m", "ray.scripts.scripts", "start", "--block", *options]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            ray_command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    return process, environment


@pytest.fixture(scope="module")
def head(interpreter, tmp_path_factory):
    folder = Path(tempfile.mkdtemp(prefix="rkb", dir="/tmp"))  # socket paths are short
    port, dashboard = free_port(), free_port()
    process, environment = start(
        interpreter,
        folder,
        "--head",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",  # its default may be another Ray's here
        "--num-cpus=2",
        "--object-store-memory=200000000",
    )
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    environment["ADDRESS"] = f"127.0.0.1:{port}"
    end = time.monotonic() + 60
    while not answers(dashboard):
        assert process.poll() is None, (folder / "head.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.2)
    yield folder, environment
    process.terminate()
    process.wait(timeout=60)
    shutil.rmtree(folder)


def submit(
    interpreter,
    environment,
    *arguments,
    status=0,
    script="pipelines/fastaa_search.py",
    options=("--working-dir", "."),
):
    client = [interpreter, "-m", "ray.scripts.scripts", "job", "submit", *options]
    for _ in range(30):
        done = subprocess.run(
            [*client, "--", str(interpreter), script, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        if "No available agent" not in done.stderr:  # the head has only just started
            break
        time.sleep(2)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@slow
def test_a_job_needs_no_raykb_on_the_nodes_and_its_results_stay(interpreter, head):
    folder, environment = head
    output = submit(interpreter, environment, *TINY)
    home = folder / "home" / "raykb"
    (run,) = (home / "runs").iterdir()
    assert str(run) in output
    assert json.loads((run / "results.json").read_text())["search"]["candidates"] == 6
    assert (home / "mlflow.db").exists()


def asked(environment, path, data=None):
    """Return what the job server answers; with data it is told something."""
    request = urllib.request.Request(
        environment["RAY_API_SERVER_ADDRESS"] + path,
        data=data,
        headers={"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def statuses(database):
    """Return how the runs of semi_train.py in a database stand, by name."""
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    place = client.get_experiment_by_name("semi-supervised")
    found = client.search_runs([place.experiment_id]) if place else []
    return {run.info.run_name: run.info.status for run in found}


@slow
@pytest.mark.timeout(1200)
def test_a_job_that_is_stopped_is_killed_in_mlflow_and_a_second_one_goes_on_to_the_same_end(
    interpreter, head, warm_ray, tmp_path
):
    folder, environment = head
    training = [
        "--smoke",
        "--set=stream={name: in_place}",
        "--set=recipe.steps=200",
        "--set=recipe.save_every=5",
        "--out",
        "stopped",
    ]
    script = "pipelines/semi_train.py"
    end = time.monotonic() + 800

    def until(condition):
        while not condition():
            assert time.monotonic() < end, asked(environment, "/api/jobs/stopped/logs")["logs"]
            time.sleep(0.1)

    def status():
        return asked(environment, "/api/jobs/stopped")["status"]

    def is_at_an_end():
        return status() not in ("PENDING", "RUNNING")

    options = ["--working-dir", ".", "--no-wait", "--submission-id", "stopped"]
    submit(interpreter, environment, *training, script=script, options=options)
    run, database = folder / "home/raykb/stopped", folder / "home/raykb/mlflow.db"
    until(lambda: any(run.glob("*/*/step-*/manifest.json")) or is_at_an_end())
    asked(environment, "/api/jobs/stopped/stop", b"{}")
    until(is_at_an_end)
    assert status() == "STOPPED"
    until(lambda: holder(LocalStorage(run)) == "")  # Ray has it STOPPED before its process ended
    until(lambda: list(statuses(database).values()) == ["KILLED"] * 2)
    assert not list(run.glob("*/*/result.json"))
    assert check(LocalStorage(run), tracking_uri=f"sqlite:///{database}") == []

    said = submit(interpreter, environment, "--resume", "stopped", script=script)
    assert "goes on after step" in said
    assert set(statuses(database).values()) == {"FINISHED"}
    assert check(LocalStorage(run), tracking_uri=f"sqlite:///{database}") == []
    new_database(tmp_path)
    in_process.run("semi_train", tmp_path, *training)
    (end_of_both,) = {path.relative_to(run) for path in run.glob("*/*/final.pt")}
    assert (run / end_of_both).read_bytes() == (tmp_path / "stopped" / end_of_both).read_bytes()


def status_of(url, token=None):
    """Return what the dashboard answers to somebody with this token, or without one."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    if token is None:
        request = urllib.request.Request(url)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


FORMS = {  # of delivery: what `ray job submit` gets beside the command
    "modules": ["--runtime-env-json", json.dumps({"py_modules": [str(ROOT / "raykb")]})],
    "nothing": [],
}
FOUND = """
import sys
{guard}
import ray
from raykb.runtime.connection import cluster_address, connected
with connected(cluster_address()):
    there = ray.remote(lambda: __import__("raykb").__file__).remote()
    print("a worker has", ray.get(there, timeout=120))
"""


@slow
def test_a_job_brings_raykb_to_the_workers_without_a_working_directory(interpreter, head, tmp_path):
    _, environment = head
    for form, options in FORMS.items():
        # from the head's checkout the script finds raykb beside itself, as those of pipelines do
        guard = f"sys.path.insert(0, {str(ROOT)!r})" if form == "nothing" else ""
        script = tmp_path / "found.py"
        script.write_text(FOUND.format(guard=guard))
        output = submit(interpreter, environment, script=str(script), options=options)
        (place,) = re.findall(r"a worker has (\S+)", output)
        assert place.endswith("/raykb/__init__.py")
        assert not place.startswith(str(ROOT)), form  # but a copy that the job has brought


@slow
def test_a_client_without_the_token_is_turned_away(interpreter, head):
    _, environment = head
    jobs = environment["RAY_API_SERVER_ADDRESS"] + "/api/jobs/"
    assert status_of(jobs) == 401
    assert status_of(jobs, "fedcba9876543210" * 4) == 403
    assert status_of(jobs, environment["RAY_AUTH_TOKEN"]) == 200
    bare = {k: v for k, v in environment.items() if k != "RAY_AUTH_TOKEN"}
    bare["HOME"] = "/nonexistent"
    bare["RAY_AUTH_MODE"] = "disabled"
    submit(interpreter, bare, "--help", status=1)


@pytest.fixture
def two_nodes():
    """A cluster of two nodes with one CPU each, beside the session's local Ray."""
    cluster = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@slow
def test_the_script_uses_both_nodes_of_a_cluster_that_runs(two_nodes, tmp_path):
    environment = os.environ | {"RAY_ADDRESS": two_nodes.address}
    arguments = [*TINY, "--out", tmp_path / "run", "--set=comparison.seeds=2"]
    done = subprocess.run(
        [sys.executable, ROOT / "pipelines" / "fastaa_search.py", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "results.json").exists()


def test_a_folder_that_another_host_does_not_see_is_refused(tmp_path, monkeypatch):
    nodes = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.1", "NodeID": "here"},
        {"Alive": True, "NodeManagerAddress": "10.0.0.2", "NodeID": "there"},
    ]
    monkeypatch.setattr(connection, "_sees", lambda storage, record, node: False)
    with pytest.raises(Refused, match=r"is not seen by 10\.0\.0\.2; with several hosts name"):
        connection.check_shared(LocalStorage(tmp_path), "run.json", "10.0.0.1", nodes)
    monkeypatch.setattr(connection, "_sees", lambda storage, record, node: True)
    connection.check_shared(LocalStorage(tmp_path), "run.json", "10.0.0.1", nodes)
    monkeypatch.setattr(connection, "_sees", lambda storage, record, node: 1 / 0)
    connection.check_shared(LocalStorage(tmp_path), "run.json", "10.0.0.1", nodes[:1])
