"""What tests share: one local Ray for the whole session, a home of their own, and a ratchet."""

import os
import sys
from pathlib import Path

import beside
import pytest
import ray
import torch
from gloo_pool import gloo
from in_process import PIPELINES
from ratchet import Ratchet

__all__ = ["gloo"]

sys.path.append(str(PIPELINES))


def pytest_addoption(parser):
    group = parser.getgroup("ratchet", "the limits of tests/seconds.yaml")
    group.addoption("--no-ratchet", action="store_true", help="let folders cost what they cost")
    group.addoption(
        "--record-seconds",
        action="store_true",
        help="write what the folders that ran whole cost into tests/seconds.yaml",
    )
    beside.add_options(parser.getgroup("beside", "two processes"))


def pytest_configure(config):
    ratchet = Ratchet(config)
    config.pluginmanager.register(ratchet)
    beside.register(config, ratchet)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Keep the user's home, and what the environment says of Ray and MLflow, out of the tests."""
    before = dict(os.environ)
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # a process that looks for clouds'
    os.environ |= {"RAY_free_objects_period_milliseconds": "0"}  # else the store shows them later
    os.environ["RAY_ADDRESS"] = "local"  # not a cluster that happens to run on this host
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
        os.environ.pop(name, None)
    yield Path(os.environ["HOME"])
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small operators on a busy machine: a second thread waits more than it brings."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def warm_ray(home):
    """One local Ray for the session, with more logical CPUs than the machine has.

    Also a script that is run in this process (:mod:`in_process`) finds it: its workers have been
    told of ``pipelines``, and of what a script tells the workers of a Ray that it starts itself.
    """
    with pytest.MonkeyPatch.context() as patch:  # workers inherit the environment of its start
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        for path in (PIPELINES, PIPELINES.parent):
            patch.setenv("PYTHONPATH", str(path), prepend=os.pathsep)
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=200 * 2**20,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def local_ray(warm_ray):
    """The same, by the name it has where functions are called and no scripts are run."""
