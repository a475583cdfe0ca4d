"""What tests share: one local Ray for the whole session, and a home of their own."""

import os
from pathlib import Path

import pytest
import ray
from gloo_pool import gloo

__all__ = ["gloo"]


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Keep the user's home, and what the environment says of Ray and MLflow, out of the tests."""
    before = dict(os.environ)
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    os.environ |= {"RAY_free_objects_period_milliseconds": "0"}  # else the store shows them later
    os.environ["RAY_ADDRESS"] = "local"  # not a cluster that happens to run on this host
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
        os.environ.pop(name, None)
    yield Path(os.environ["HOME"])
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def local_ray(home):
    """One local Ray with more logical CPUs than the machine has, for every test that needs one."""
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
