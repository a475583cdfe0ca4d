"""One session-wide pool of processes that talk over gloo: each start costs seconds.

It is no conftest because the processes import it by name, and conftest is the name of several.
"""

import contextlib
import datetime
import os
import sys
import time
import traceback
from multiprocessing.connection import wait

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from cpu_meter import METER

_HOST = "127.0.0.1"

PRELOADED = [
    "pytest",
    "torch",
    "torchvision",
    "raykb.gpipe.pipeline",
    "raykb.runtime.stage_training",
]
"""Imports of the one process that all are forked from, whichever context forks them."""


class Pool:
    """Processes that run functions of test modules side by side, in a process group of theirs."""

    def __init__(self):
        # forked from a process that has imported what is slow to import, once for all of them
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._workers = []
        self._store, self._runs = None, 0

    def run(self, function, *arguments, size):
        """Return what ``function(*arguments)`` returns in each of ``size`` processes, by rank."""
        with METER.aside():
            self._start(size)
        if self._store is None:  # of this process, so that it is there whoever is slow to end
            self._store = dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
        self._runs += 1
        for rank, (_, pipe) in enumerate(self._workers[:size]):
            pipe.send((function, arguments, rank, size, self._store.port, str(self._runs)))
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(self._workers[:size])}
        values, deadline = [None] * size, time.monotonic() + 120
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise TimeoutError(f"{function.__name__}: ranks {list(waiting.values())} hang")
            for pipe in ready:
                kind, value = pipe.recv()
                if kind == "failed":  # its peers may wait for it for ever
                    self.close()
                    raise AssertionError(value)
                values[waiting.pop(pipe)] = value
        return values

    def _start(self, size):
        """Start what is missing of ``size`` processes."""
        new = []
        while len(self._workers) < size:
            here, there = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(there, sys.path), daemon=True)
            process.start()
            self._workers.append((process, here))
            new.append(here)
        for pipe in new:  # imports take minutes on a busy machine; then the clock starts
            if not pipe.poll(timeout=240):
                self.close()
                raise TimeoutError("the processes of gloo do not start")
            pipe.recv()

    def close(self):
        for process, _ in self._workers:
            process.kill()
            process.join()
        self._workers = []


def _serve(pipe, path):
    sys.path[:] = path
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    pipe.send("ready")
    while True:
        function, arguments, rank, size, port, number = pipe.recv()
        try:
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore(number, dist.TCPStore(_HOST, port, is_master=False)),
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=60),
            )
            pipe.send(("returned", function(*arguments)))
        except BaseException:
            pipe.send(("failed", f"rank {rank}: {traceback.format_exc()}"))
        finally:
            with contextlib.suppress(Exception):
                dist.destroy_process_group()


POOL = Pool()


@pytest.fixture(scope="session")
def gloo():
    yield POOL
    POOL.close()
