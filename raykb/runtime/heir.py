"""The process that ends a run in the tracking store where the run itself is not given the time.

Ray kills a stopped job 3 s after it has asked it to end. What is in the spool by then is whole, and
this process sends it, and that the run was killed, as whoever opens the directory next would.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from raykb.later import Later
from raykb.runtime.tracking import replay

watch = Later("raykb.runtime.watch")

LIMIT_S = 60.0
"""Seconds that it waits for the run to end, and for MLflow to answer."""

_LOOK_S = 0.2


def appoint(spool: Path, uri: str) -> "subprocess.Popen[bytes]":
    """Start the process, which outlives this one; what it is told shows in no list of processes."""
    heir = subprocess.Popen(
        [sys.executable, "-m", "raykb.runtime.heir"],
        env=watch.import_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what is sent to all processes of the run is not meant for it
    )
    with heir.stdin as pipe:  # type: ignore[union-attr]
        pipe.write(json.dumps({"spool": str(spool), "uri": uri}).encode())
    return heir


def main() -> None:
    """Send what is left once the run has ended; where that takes it too long, it does so itself."""
    told = json.load(sys.stdin)
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        try:
            replay(Path(told["spool"]), uri=told["uri"], wait_s=LIMIT_S)
        except RuntimeError:  # it is in use
            time.sleep(_LOOK_S)
        else:
            return


if __name__ == "__main__":
    main()
