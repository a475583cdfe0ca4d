"""Nodes come and go under a run, and so does the head: nothing is lost but time."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray.cluster_utils
import shared_run
import shared_training
from databases import new_database
from shared_training import LIMIT_S

from raykb.engine.loop import Worker, fit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]


@pytest.fixture(scope="module")
def undisturbed():
    alone = shared_training.build(Worker())
    fit(alone, log=lambda step, figures: None)
    return alone.evaluate("test").figures["test/weight"]


@pytest.fixture
def start_cluster():
    """Start a cluster of one node with one CPU, beside the session's local Ray."""
    clusters = []

    def start():
        head = {"num_cpus": 1, "include_dashboard": False}
        clusters.append(ray.cluster_utils.Cluster(initialize_head=True, head_node_args=head))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.shutdown()


@pytest.fixture
def driver(tmp_path):
    """Start the script on a cluster; what is not at its end when the test is, is killed."""
    (tmp_path / "config.yaml").write_text("storage: runs\ntracking: {}\n")
    new_database(tmp_path)
    started = []

    def start(cluster, *arguments):
        command = [sys.executable, shared_run.__file__, tmp_path, *arguments]
        with (tmp_path / "driver.log").open("a") as log:
            started.append(
                subprocess.Popen(
                    command,
                    cwd=tmp_path,
                    env=os.environ | {"RAY_ADDRESS": cluster.address},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(path, *, gone=False):
    end = time.monotonic() + LIMIT_S
    while path.exists() is gone:
        assert time.monotonic() < end
        time.sleep(0.1)


def ended(driver, log, undisturbed):
    """Return what a run said that came to its end, with the figures that it must have."""
    assert driver.wait(timeout=LIMIT_S) == 0, log.read_text()
    said = log.read_text()
    assert f"{undisturbed} {undisturbed}" in said.splitlines()
    return said


def test_a_node_that_joins_is_used_and_what_it_did_when_it_left_is_taken_up(
    start_cluster, driver, tmp_path, undisturbed
):
    cluster, log = start_cluster(), tmp_path / "driver.log"
    script = driver(cluster, "--out", "run")
    until(tmp_path / f"first-on-{cluster.head_node.node_id}")
    node = cluster.add_node(num_cpus=1)
    until(tmp_path / f"second-on-{node.node_id}")
    cluster.remove_node(node, allow_graceful=False)
    (tmp_path / "go").touch()
    said = ended(script, log, undisturbed)
    assert (tmp_path / f"second-on-{cluster.head_node.node_id}").exists()
    assert "there is now 2 nodes with 1 CPU | 1 CPU; trainings: 2 at once" in said


def test_without_the_head_a_run_ends_with_words_and_goes_on_in_another_cluster(
    start_cluster, driver, tmp_path, undisturbed
):
    cluster, log = start_cluster(), tmp_path / "driver.log"
    script = driver(cluster, "--out", "run")
    first = tmp_path / f"first-on-{cluster.head_node.node_id}"
    until(first)
    until(tmp_path / "waits")
    address = cluster.address
    cluster.head_node.kill_gcs_server()
    assert script.wait(timeout=LIMIT_S) == 1
    assert f"Ray's head at {address} does not answer any more" in log.read_text()
    assert "--resume" in log.read_text()
    (mark,) = tmp_path.glob("0-of-1-13-*")
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    worker = Path("/proc", mark.name.split("-")[-1])  # it could finish the training by itself
    until(worker, gone=True)
    (tmp_path / "go").touch()
    again = driver(start_cluster(), "--resume", "run")
    assert "goes on after step 12" in ended(again, log, undisturbed)
