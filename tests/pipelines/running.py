"""Scripts as their users run them: from the command line, in a folder, and killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


def run(script, folder, *arguments, status=0, timeout=250):
    """Run ``pipelines/<script>.py`` in ``folder`` to its end, which must have this status."""
    done = subprocess.run(
        [sys.executable, str(PIPELINES / f"{script}.py"), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def stopped(script, folder, *arguments, when, number, timeout=150):
    """Start a script, send it a signal when ``when()`` holds; return its status and output."""
    process = subprocess.Popen(
        [sys.executable, str(PIPELINES / f"{script}.py"), *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    limit = time.monotonic() + timeout
    while not when():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output
