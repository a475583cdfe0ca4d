"""The process beside one that works: it ends that one when it stands still for too long.

It is started by :func:`raykb.runtime.watch.watched`, costs 30 ms of CPU and a look a second, and
ends with the process that it watches. Nothing but the standard library is imported unless a hang is
written down.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from raykb.later import Later
from raykb.runtime.board import HUNG, STACKS_SIGNAL, Board

storage = Later("raykb.runtime.storage")
_LOOK_S = 1.0
_STACKS_S = 3.0
_WRITE_S = 30.0  # the storage may be what hangs


class Patience:
    """Counts the seconds without a sign of life.

    Only those count in which somebody looked: a machine that was suspended, or a container that was
    frozen with all that is in it, has missed nothing.

    Args:
        least_s: how long a process may be stopped by a signal.
    """

    def __init__(self, least_s: float) -> None:
        self._least_s, self._signs, self._silent_s, self._stopped_s = least_s, 0, 0.0, 0.0

    def lost(self, seconds: float, board: tuple[int, float, str], stopped: bool) -> str:
        """Return what is wrong; empty as long as there is nothing.

        Args:
            seconds: since the last look.
            board: what it says (:meth:`Board.read`).
            stopped: whether the process is stopped by a signal.
        """
        signs, limit_s, what = board
        seconds = min(seconds, 2 * _LOOK_S)
        self._silent_s = self._silent_s + seconds if signs == self._signs else 0.0
        self._stopped_s = self._stopped_s + seconds if stopped else 0.0
        self._signs = signs
        if self._stopped_s > self._least_s:
            return f"{what}: stopped by a signal, for {self._stopped_s:.3g} s"
        if self._silent_s > limit_s:
            return f"{what}: no sign of life within {limit_s:.3g} s"
        return ""


def is_stopped(process: int) -> bool:
    """Return whether a process of this host is stopped by a signal, and by no debugger."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def stacks(process: int, descriptor: int) -> str:
    """Return the stacks of a process's threads, the one that got the signal last."""
    os.kill(process, STACKS_SIGNAL)
    end, size = time.monotonic() + _STACKS_S, 0
    while time.monotonic() < end:
        time.sleep(0.1)
        before, size = size, os.fstat(descriptor).st_size
        if size and size == before:
            break
    return os.pread(descriptor, size, 0).decode(errors="replace")


def record(uri: str, name: str, text: str) -> None:
    """Write a hang to the run directory, unless that hangs, too."""
    folder, _, who = name.rpartition("/")
    file = f"{HUNG}/{folder}/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{who}.txt"
    write = threading.Thread(
        target=lambda: storage.open_storage(uri).write(file, text.encode()), daemon=True
    )
    write.start()
    write.join(_WRITE_S)


def main() -> None:
    """Watch the parent process until it ends, or has to be ended."""
    told = json.load(sys.stdin)
    process, board, patience = told["process"], Board(told["board"]), Patience(told["least_s"])
    before = time.monotonic()
    while os.getppid() == process:
        time.sleep(_LOOK_S)
        now, stopped = time.monotonic(), is_stopped(process)
        why = patience.lost(now - before, board.read(), stopped)
        before = now
        if why and os.getppid() == process:
            line = f"process {process} on {socket.gethostname()} hung at {why}"
            where = "" if stopped else stacks(process, told["stacks"])
            print(line, where, sep="\n", file=sys.stderr, flush=True)
            if told["uri"] is not None:
                record(told["uri"], told["name"], f"{line}\n\n{where}")
            os.kill(process, signal.SIGKILL)
            os._exit(0)


if __name__ == "__main__":
    main()
