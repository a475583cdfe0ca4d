"""Random faults over a run's phases: killed and gone on with until done, nothing is lost or wrong.

A round kills driver and workers at moments that its seed draws, as shares of the work, so that each
fault comes whatever the machine's speed. For more than one round, by hand::

    RAYKB_SOAK_S=3600 pytest -m slow tests/runtime/test_soak.py --timeout 5000
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import here
import pytest
import ray
import shared_survivor
from databases import new_database

from raykb.runtime.checking import check
from raykb.runtime.left import uri_of
from raykb.runtime.storage import LocalStorage
from raykb.runtime.tracking import replay

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:sqlalchemy.exc.SADeprecationWarning",
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)
LIMIT_S = 600
FAULTS = ["driver", "worker", "worker"]


class Round:
    """One run that is killed at the moments of a seed, in a folder of its own."""

    def __init__(self, folder, seed):
        self.folder, self.run, self.marks = folder, folder / "run", folder / "marks"
        self.marks.mkdir(parents=True)
        new_database(folder)
        config = shared_survivor.CONFIG.replace("marks: ''", f"marks: {self.marks}")
        (folder / "config.yaml").write_text(config)
        draw = random.Random(seed)
        moments = sorted(draw.uniform(0.05, 0.9) for _ in FAULTS)
        self.plan = list(zip(moments, draw.sample(FAULTS, len(FAULTS)), strict=True))
        self.fired = []

    def _process(self):
        begun = (self.run / "run.json").exists()
        script = Path(shared_survivor.__file__)
        command = [sys.executable, script, "--resume" if begun else "--out", "run"]
        return subprocess.Popen(
            [*map(str, command)],
            cwd=self.folder,
            env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def through(self):
        """Start the run, and go on with it after each death of its driver, until it is done."""
        while True:
            with self._process() as driver:
                try:
                    self._kill_all(driver)
                    said, _ = driver.communicate(timeout=LIMIT_S)
                finally:
                    driver.kill()
            if driver.returncode != -signal.SIGKILL:
                assert driver.returncode == 0, said
                return said

    def _kill_all(self, driver):
        """Kill what the plan says, up to a driver."""
        end = time.monotonic() + LIMIT_S
        while self.plan and driver.poll() is None:
            assert time.monotonic() < end
            moment, what = self.plan[0]
            if self.done() >= moment and (process := self._victim(what, driver)):
                os.kill(process, signal.SIGKILL)
                self.fired.append((what, process))
                self.plan.pop(0)
                if what == "driver":
                    return
            time.sleep(0.01)

    def done(self):
        """Return the share of the work that was done, once or several times."""
        return len({path.name.partition("-")[2] for path in self.marks.iterdir()}) / (
            shared_survivor.MARKS
        )

    def _victim(self, what, driver):
        """Return a process: the driver, or one of Ray's that was at work a moment ago."""
        if what == "driver":
            return driver.pid
        latest = max(self.marks.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        process = int(latest.name.partition("-")[0])
        dead = {number for _, number in self.fired}
        return process if process not in dead and Path(f"/proc/{process}").exists() else None


def undisturbed(folder):
    """Return results and candidates of the run in this process, to which nothing happens."""
    folder.mkdir()
    (folder / "config.yaml").write_text(shared_survivor.CONFIG.replace("0.1", "0.0"))
    script = {"SCHEMA": shared_survivor.SCHEMA}
    config = here.resolved(script, str(folder / "config.yaml"), smoke=False)
    started = here.session(folder / "run", config)
    shared_survivor.survive(started, shared_survivor.prepare(config))
    return told(folder / "run")


def told(run):
    tables = json.loads((run / "results.json").read_text())
    return tables["tables"], json.loads((run / "candidates.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_killed_at_random_and_gone_on_with_a_run_ends_as_if_nothing_had_happened(
    local_ray, tmp_path
):
    wanted = undisturbed(tmp_path / "undisturbed")
    seconds, begin, rounds = float(os.environ.get("RAYKB_SOAK_S", 0)), time.monotonic(), 0
    while rounds == 0 or time.monotonic() - begin < seconds:
        one = Round(tmp_path / f"round-{rounds}", rounds)
        one.through()
        assert sorted(what for what, _ in one.fired) == sorted(FAULTS), rounds
        assert told(one.run) == wanted, rounds
        assert replay(one.run / "tracking") == 0  # what a busy machine did not send in time
        storage = LocalStorage(one.run)
        assert check(storage, tracking_uri=uri_of(storage)) == [], rounds
        rounds += 1
