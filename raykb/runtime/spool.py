"""The spool of a tracker: an append-only log of what is to be sent, and how far it has been.

::

    <spool>/tracking.jsonl   a line for each record; the first names the spool
    <spool>/tracking.json    the state: where sending goes on, and what it has to know for that
    <spool>/tracking.lock    held by the one process that uses the spool
"""

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raykb.data.atomic import whole_file
from raykb.engine.foreign import parsed

_READ_BYTES = 1 << 18  # of the log at a time
_LOOK_S = 0.1
_WINDOW = 1024  # steps of a metric that may come in any order


class Spool:
    """An append-only log of operations, and how far they have been sent.

    One process at a time. A line that a crash or a full disk cut off is passed over.

    Args:
        folder: local; made if there is none.
        patience_s: how long to wait for a process that uses it.
    """

    def __init__(self, folder: Path, *, patience_s: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.state_file = folder / "tracking.jsonl", folder / "tracking.json"
        self._lock = os.open(folder / "tracking.lock", os.O_RDWR | os.O_CREAT, 0o600)
        end = time.monotonic() + patience_s
        while not (mine := self._locked()) and time.monotonic() < end:
            time.sleep(_LOOK_S)
        if not mine:
            owner = os.pread(self._lock, 20, 0).decode()
            os.close(self._lock)
            raise RuntimeError(
                f"spool: {folder} is in use by process {owner}; give each run a folder of its own, "
                "or wait for that process to end"
            )
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        self._file = os.open(self.log, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self.written = os.fstat(self._file).st_size
        self._torn = self.written > 0 and os.pread(self._file, 1, self.written - 1) != b"\n"

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record; it outlives this process when the call returns."""
        line = b"\n" * self._torn + json.dumps(record, separators=(",", ":")).encode() + b"\n"
        self._torn = True
        count = os.write(self._file, line)
        self.written += count
        if count < len(line):
            raise OSError(f"{self.log}: {count} of {len(line)} bytes were written; disk full?")
        self._torn = False

    def read(self, start: int) -> tuple[list[dict[str, Any]], int]:
        """Return the next records from the offset ``start``, and where they end."""
        size, data = _READ_BYTES, b""
        while b"\n" not in data and len(data) < self.written - start:
            data = os.pread(self._file, size, start)
            size *= 4
        whole = data.rfind(b"\n") + 1
        records = []
        for line in data[:whole].splitlines():
            with contextlib.suppress(ValueError):
                records.append(parsed(line))
        return records, start + whole

    def records(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield all records from the offset ``start``."""
        records, end = self.read(start)
        while end > start:
            yield from records
            start = end
            records, end = self.read(start)

    def state(self) -> dict[str, Any]:
        """Return what :meth:`note` has written last; empty if there is nothing to read."""
        try:
            state = parsed(self.state_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def note(self, state: Mapping[str, Any]) -> None:
        """Replace the state."""
        with whole_file(self.state_file) as file:
            file.write(json.dumps(state).encode())

    def close(self) -> None:
        """Leave the spool to other processes."""
        os.close(self._file)
        os.close(self._lock)


class Steps:
    """The steps a metric has been logged at: the latest exactly, those before by their highest."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._floor = -math.inf

    def add(self, step: int) -> bool:
        """Return whether ``step`` is new, and keep it."""
        if step <= self._floor or step in self._recent:
            return False
        self._recent.add(step)
        if len(self._recent) > 2 * _WINDOW:
            steps = sorted(self._recent)
            self._floor, self._recent = steps[_WINDOW], set(steps[_WINDOW + 1 :])
        return True
