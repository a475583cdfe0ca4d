"""Two hosts on one machine: a Ray cluster over two network namespaces."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_CORES = Path("/sys/fs/cgroup/cpu")
_MOST_SHARES = 2**18  # that the kernel takes; others have 1024 each


def can_be_slowed():
    """Return whether this process may make groups with shares of the cores (cgroup, version 1)."""
    try:
        return _CORES.is_dir() and os.access(_cores_of_own(), os.W_OK)
    except (OSError, ValueError):  # this process is in no such group
        return False


def _cores_of_own():
    """Return the folder of the group whose share of the cores this process has."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    (own,) = [
        path
        for _, names, path in (line.split(":", 2) for line in lines)
        if "cpu" in names.split(",")
    ]
    return _CORES / own.lstrip("/")


def _members(group):
    return set(map(int, (group / "cgroup.procs").read_text().split()))


def _move(pids, group):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            (group / "cgroup.procs").write_text(f"{pid}")


def _dissolve(group, seconds=60):
    end = time.monotonic() + seconds
    while group.exists():
        _move(_members(group), group.parent)
        try:
            group.rmdir()
        except OSError:  # somebody was born meanwhile
            if time.monotonic() > end:
                raise


class TwoHosts:
    """Two network namespaces joined by a virtual cable; a Ray node of one CPU in each.

    ``command`` runs in the first of them, where the head of the cluster is, at ``address``; their
    own addresses are ``hosts``.
    """

    def __init__(self, folder, cpus=1):
        mark = f"{os.getpid():x}"
        self._folder, self._cpus = folder, cpus
        self._spaces = [f"raykb-{mark}-{side}" for side in "ab"]
        self._cables = [f"rk{mark}{side}" for side in "ab"]
        self.hosts = ["10.77.0.1", "10.77.0.2"]
        self._nodes = []
        self.address = f"{self.hosts[0]}:6379"

    def _ip(self, *arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    def connect(self):
        for space in self._spaces:
            self._ip("netns", "add", space)
        self._ip("link", "add", self._cables[0], "type", "veth", "peer", "name", self._cables[1])
        sides = zip(self._spaces, self._cables, self.hosts, reversed(self.hosts), strict=True)
        for space, cable, host, other in sides:
            self._ip("link", "set", cable, "netns", space)
            self._ip("-n", space, "addr", "add", f"{host}/24", "dev", cable)
            for interface in (cable, "lo"):
                self._ip("-n", space, "link", "set", interface, "up")
            self._ip("-n", space, "route", "add", "default", "via", other)

    def start(self):
        """Start a node on each host, and wait until the cluster has both."""
        self._start(0, "--head", "--port=6379", "--include-dashboard=false")
        self._until("import ray; ray.init('auto')")
        self._start(1, f"--address={self.address}")
        self._until("import ray; ray.init('auto'); assert len(ray.nodes()) == 2")

    def _start(self, side, *options):
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += [f"--node-ip-address={self.hosts[side]}", f"--num-cpus={self._cpus}"]
        command += ["--object-store-memory=100000000"]
        self._nodes.append(self._launched(side, self.on(side, *command)))

    def _launched(self, side, command):
        with (self._folder / f"node-{side}.log").open("w") as log:
            return subprocess.Popen(
                command, env=self._environment(), stdout=log, stderr=subprocess.STDOUT
            )

    def _environment(self):
        # a temporary folder of its own: its note of a running cluster is for nobody else
        return os.environ | {"RAY_TMPDIR": str(self._folder), "RAY_ADDRESS": self.address}

    def _until(self, code, seconds=400):
        """Wait; a node that gave up, as Ray does on a busy machine after 30 s, is started again."""
        end = time.monotonic() + seconds
        while trouble := self._trouble(code):
            logs = [log.read_text() for log in self._folder.glob("node-*.log")]
            assert time.monotonic() < end, "\n".join([trouble, *logs])
            for side, node in enumerate(self._nodes):
                if node.poll() is not None:
                    self._empty(side)
                    self._nodes[side] = self._launched(side, node.args)

    def _trouble(self, code):
        """Return what keeps the code from its end on the first host; nothing where nothing does."""
        try:
            done = self.command(sys.executable, "-c", code, timeout_s=100)
        except subprocess.TimeoutExpired as error:
            return str(error)
        return done.stderr if done.returncode else ""

    def command(self, *arguments, timeout_s=200):
        """Run a command on the first host; return what :func:`subprocess.run` returns."""
        return subprocess.run(
            self.on(0, *arguments),
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def on(self, side, *arguments):
        """Return the command that runs a command on the first (0) or second (1) host."""
        return ["ip", "netns", "exec", self._spaces[side], *map(str, arguments)]

    def pids(self, side):
        """Return the processes on the first (0) or second (1) host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self._spaces[side]], capture_output=True, text=True
        )
        return list(map(int, listed.stdout.split()))

    @contextlib.contextmanager
    def slowed(self, side, share):
        """Give one host a share of a core and the other one a whole, before all others' work.

        So for whatever is on them now and for what that starts, until the context is left.
        """
        groups = [_cores_of_own() / space for space in self._spaces]
        try:
            for each, group in enumerate(groups):
                group.mkdir()
                (group / "cpu.shares").write_text(f"{_MOST_SHARES}")
                period = int((group / "cpu.cfs_period_us").read_text())
                if each == side:
                    (group / "cpu.cfs_quota_us").write_text(f"{int(share * period)}")
                while outside := set(self.pids(each)) - _members(group):
                    _move(outside, group)
            yield
        finally:
            for group in groups:
                _dissolve(group)

    def stop(self):
        """End the nodes, then whatever is left in these namespaces, then the namespaces."""
        for process in reversed(self._nodes):  # the head last, whom the other one tells
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for side, space in enumerate(self._spaces):
            self._empty(side)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        subprocess.run(["ip", "link", "del", self._cables[0]], capture_output=True)

    def _empty(self, side):
        """End whatever is on a host."""
        for pid in self.pids(side):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
