"""How an invocation of a script ends when it is told to."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from mlflow import MlflowClient

STUBBORN = """
    import sys
    import time
    from pathlib import Path

    from raykb.runtime import job

    job._STOP_S = 1.0

    def stubborn(session):
        print("begun", flush=True)
        try:
            time.sleep(600)
        finally:
            time.sleep(600)  # like a Ray that has got the signal too, and does not answer

    options = {"description": "", "default": Path("config.yaml"), "schema": {}}
    sys.exit(job.launch(stubborn, **options, plan=lambda config: []))
"""


@pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
)
def test_a_run_that_does_not_come_to_its_end_is_closed_and_says_how_to_go_on(tmp_path):
    (tmp_path / "stubborn.py").write_text(textwrap.dedent(STUBBORN))
    (tmp_path / "config.yaml").write_text("storage: runs\ntracking: {}\n")
    with subprocess.Popen(
        [sys.executable, "stubborn.py", "--out", "run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does, to Ray's processes too
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stubborn: stopped by SIGTERM" in said
    assert "--resume" in said
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [found.experiment_id for found in client.search_experiments()]
    assert [run.info.status for run in client.search_runs(experiments)] == ["KILLED"]
