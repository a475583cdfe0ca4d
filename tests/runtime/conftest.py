"""Two hosts on one machine: a Ray cluster over two network namespaces."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest


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
        with (self._folder / f"node-{side}.log").open("w") as log:
            process = subprocess.Popen(
                self.on(side, *command),
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._nodes.append(process)

    def _environment(self):
        # a temporary folder of its own: its note of a running cluster is for nobody else
        return os.environ | {"RAY_TMPDIR": str(self._folder), "RAY_ADDRESS": self.address}

    def _until(self, code, seconds=90):
        end = time.monotonic() + seconds
        while (done := self.command(sys.executable, "-c", code)).returncode:
            logs = [log.read_text() for log in self._folder.glob("node-*.log")]
            assert time.monotonic() < end, "\n".join([done.stderr, *logs])

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

    def stop(self):
        """End the nodes, then whatever is left in these namespaces, then the namespaces."""
        for process in reversed(self._nodes):  # the head last, whom the other one tells
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for space in self._spaces:
            listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
            for pid in map(int, listed.stdout.split()):
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        subprocess.run(["ip", "link", "del", self._cables[0]], capture_output=True)


@pytest.fixture(scope="module")
def two_hosts(home):
    """Two hosts with a Ray cluster of one CPU each; skips where namespaces are not permitted."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command `ip` (apt-get install iproute2) to make namespaces with")
    folder = Path(tempfile.mkdtemp(prefix="rkb", dir="/tmp"))  # socket paths are short
    hosts = TwoHosts(folder)
    try:
        try:
            hosts.connect()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        hosts.start()
        yield hosts
    finally:
        hosts.stop()
        shutil.rmtree(folder, ignore_errors=True)
