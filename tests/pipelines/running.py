"""Scripts as their users run them: from the command line, in a folder, and killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"

LIMIT_S = 600
"""Guards against a hang, on a slow and busy machine too; no script is meant to take so long."""

TINY_SEARCH = [
    "--smoke",
    "--set=data.train_size=240",
    "--set=search.rounds=2",
    "--set=search.width=4",
    "--set=comparison.rivals={cutout: {name: cutout}}",
    "--set=comparison.seeds=1",
]
"""What makes ``fastaa_search`` a matter of seconds: two trainings, 16 candidates, two rivals."""


def run(script, folder, *arguments, status=0):
    """Run ``pipelines/<script>.py`` in ``folder`` to its end, which must have this status."""
    done = subprocess.run(
        [sys.executable, str(PIPELINES / f"{script}.py"), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def stopped(script, folder, *arguments, when, number):
    """Start a script, send it a signal when ``when()`` holds; return its status and output."""
    with subprocess.Popen(
        [sys.executable, str(PIPELINES / f"{script}.py"), *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            limit = time.monotonic() + LIMIT_S
            while not when():
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < limit
                time.sleep(0.02)
            os.kill(process.pid, number)
            output, _ = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()  # a test that fails leaves nothing running
    return process.returncode, output
