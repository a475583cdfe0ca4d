"""One pipeline over two nodes, over two hosts, and on with fewer when one is lost."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import in_process
import pytest
import ray.cluster_utils
import torch
from shared_hosts import can_be_slowed
from shared_training import LIMIT_S

from raykb.gpipe.costs import Costs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]

SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "gpipe_train.py"
TINY = ["--smoke", "--set=data.train_size=200", "--set=recipe.epochs=10"]
TINY += ["--set=pipeline.balance=parameters"]  # measured times would cut each run elsewhere
SPREAD = ["--set=pipeline.place=spread", "--set=pipeline.timeout_s=30"]


@pytest.fixture
def two_nodes():
    """A cluster of two nodes with one CPU each, beside the session's local Ray."""
    cluster = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    lost = cluster.add_node(num_cpus=1)
    yield cluster, lost
    cluster.shutdown()


def weights(directory):
    return torch.load(directory / "training" / "final.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(warm_ray, tmp_path_factory):
    """The run on this host, which nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    in_process.run("gpipe_train", folder, *TINY, "--out", "run")
    return folder / "run"


def test_with_a_node_lost_a_pipeline_goes_on_in_fewer_stages(two_nodes, whole, tmp_path):
    cluster, lost = two_nodes
    elastic = ["--set=pipeline.elastic=true", "--set=pipeline.wait_s=5.0"]
    saved = tmp_path / "run" / "training" / "step-00000002" / "manifest.json"
    with subprocess.Popen(
        [sys.executable, SCRIPT, *TINY, *SPREAD, *elastic, "--out", tmp_path / "run"],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as driver:
        try:
            end = time.monotonic() + LIMIT_S
            while not saved.exists():
                assert time.monotonic() < end
                assert driver.poll() is None, driver.communicate()[0]
                time.sleep(0.05)
            assert len(json.loads(saved.read_text())["parts"]) == 2
            cluster.remove_node(lost, allow_graceful=False)
            output, _ = driver.communicate(timeout=LIMIT_S)
        finally:
            driver.kill()  # a test that fails leaves nothing running
    assert driver.returncode == 0, output
    (last,) = (tmp_path / "run" / "training").glob("step-00000020/manifest.json")
    assert len(json.loads(last.read_text())["parts"]) == 1
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, atol=1e-4, rtol=1e-4)


def test_two_hosts_train_one_pipeline(two_hosts, whole, tmp_path):
    """Each host has one CPU, so each has one stage; gloo has to find the way between them."""
    done = two_hosts.command(
        sys.executable, SCRIPT, *TINY, *SPREAD, "--out", tmp_path / "run", timeout_s=LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name, value in weights(whole).items():
        assert torch.equal(weights(tmp_path / "run")[name], value), name


@pytest.mark.skipif(not can_be_slowed(), reason="there are no groups with a share of the cores")
def test_a_host_that_is_slower_gets_fewer_layers(two_hosts, tmp_path):
    """Nothing else takes a core from them, so the one with 0.3 of a core is slower by about that.

    Which stage it has is Ray's choice.
    """
    by_time = ["--smoke", "--set=pipeline.balance=time", "--set=pipeline.place=spread"]
    with two_hosts.slowed(1, 0.3):
        done = two_hosts.command(
            sys.executable, SCRIPT, *by_time, "--out", tmp_path / "run", timeout_s=LIMIT_S
        )
    assert done.returncode == 0, done.stdout + done.stderr
    read = {
        name: json.loads((tmp_path / "run" / name).read_text())
        for name in ("costs.json", "training/speeds.json", "results.json")
    }
    found, metrics = read["training/speeds.json"], read["results.json"]["metrics"]
    slower = found["hosts"].index(two_hosts.hosts[1])
    assert found["speeds"][slower] < found["speeds"][1 - slower] == 1
    alike = Costs.of_state(read["costs.json"]).balance("time", 2, checkpoint="never")
    assert metrics[f"pipeline/layers-{slower}"] < alike[slower], (found, alike)
