"""CPU seconds of a process and of all that it started: what a test costs, on any machine.

Seconds of the clock measure the neighbours, too. These count what was computed: user and system
time of the process, of its children and of theirs, also of those that nobody waits for, as Ray's
workers. A process of its own watches ``/proc`` a few times a second, for what has ended unwaited
for cannot be asked any more; it has no threads here that a test could find.
"""

import contextlib
import gc
import os
import select
import subprocess
import sys
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAUSE_S = 0.25


class Meter:
    """Measures this process from :meth:`start` on; ``seconds`` never falls.

    ``shared`` are the seconds that were spent :meth:`aside`.
    """

    def __init__(self):
        self._watcher, self._seconds, self.shared = None, 0.0, 0.0

    def start(self):
        """Begin to measure, where processes stand in ``/proc``."""
        if not Path("/proc/self/stat").exists():
            return
        self._watcher = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # signals to the group of the tests are not for it
        )

    def seconds(self):
        """Return the CPU seconds until a quarter of a second ago; they stay where none measures."""
        if self._watcher is not None:
            try:
                self._watcher.stdin.write(b"\n")
                self._watcher.stdin.flush()
                self._seconds = float(self._watcher.stdout.readline())
            except (OSError, ValueError):  # it has been killed: what is not known fails no test
                self.stop()
        return self._seconds

    def leave_out(self, pid):
        """Count nothing of a process that has just begun, nor of what it will start."""
        if self._watcher is not None:
            with contextlib.suppress(OSError):
                self._watcher.stdin.write(f"{pid}\n".encode())
                self._watcher.stdin.flush()

    @contextlib.contextmanager
    def aside(self):
        """Count what is spent meanwhile for no test: it serves all that come."""
        start, before = self.seconds(), self.shared
        try:
            yield
        finally:
            self.shared = before + self.seconds() - start

    def stop(self):
        if self._watcher is not None:
            watcher, self._watcher = self._watcher, None
            with contextlib.suppress(OSError):
                watcher.stdin.close()
            watcher.stdout.close()
            watcher.wait()


class Tree:
    """CPU ticks of a process and its descendants, those included whose parents have ended.

    A process that ends is still counted if its parent waits for it, as its share is among the
    parent's then; else what it took since the last look is lost.
    """

    def __init__(self, root, without=()):
        self._root, self._without = root, set(without)
        self._known, self._last, self.ticks = {}, 0, 0

    def leave_out(self, pid):
        """Count neither this process nor what it will start."""
        self._without.add(pid)

    def look(self, table):
        """Go on with a table: pid -> (parent, start, ticks with children that were waited for)."""
        children = {}
        for pid, (parent, _, _) in table.items():
            children.setdefault(parent, []).append(pid)
        orphans = [pid for pid, start in self._known.items() if table.get(pid, (0, 0))[1] == start]
        members, waiting = {}, [self._root, *orphans]
        while waiting:
            pid = waiting.pop()
            if pid in table and pid not in members and pid not in self._without:
                members[pid] = table[pid][1]
                waiting += children.get(pid, [])
        now = sum(table[pid][2] for pid in members)
        self.ticks += max(0, now - self._last)
        self._known, self._last = members, now


def processes():
    """Return pid -> (parent, start, ticks) of all processes of this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # has ended meanwhile
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                found[int(folder.name)] = (
                    int(fields[1]),
                    int(fields[19]),
                    sum(map(int, fields[11:15])),
                )
    return found


def watch(root):
    """Look again and again until stdin ends; a line asks for the seconds, or says whom to leave."""
    tree, stdin = Tree(root, without=[os.getpid()]), sys.stdin.buffer.raw
    tree.look(processes())
    tree.ticks = 0
    looked = time.monotonic()
    while os.getppid() == root:
        asked, _, _ = select.select([stdin], [], [], _PAUSE_S)
        if time.monotonic() - looked >= _PAUSE_S:
            tree.look(processes())
            looked = time.monotonic()
        if asked:
            line = stdin.readline()
            if not line:
                return
            if line.strip():
                tree.leave_out(int(line))
                continue
            sys.stdout.write(f"{tree.ticks / _TICKS}\n")
            sys.stdout.flush()


def workload_s():
    """Return the CPU seconds of a fixed piece of work, about 0.02 s: how slow this machine is now.

    Half of it is Python's own work, half has more data than the nearest caches hold, so it suffers
    from neighbours as tests do.
    """
    collecting = gc.isenabled()
    gc.disable()  # whose work grows with what others have imported
    start = time.thread_time()
    words = {str(number): [number, -number] for number in range(50_000)}
    text = ",".join(sorted(words, key=lambda word: words[word][1]))
    assert sum(map(int, text.split(","))) == 1_249_975_000
    spent = time.thread_time() - start
    if collecting:
        gc.enable()
    return spent


METER = Meter()


if __name__ == "__main__":
    watch(int(sys.argv[1]))
