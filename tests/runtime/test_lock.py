"""A run directory is held by one process, be it a folder or in an object store."""

import json
import os
import socket
import threading
import time
import types

import pytest

from raykb.runtime import lock
from raykb.runtime.lock import LEASE, lease, locked
from raykb.runtime.session import Refused
from raykb.runtime.storage import LocalStorage, RemoteStorage


@pytest.fixture(params=["local", "remote"])
def storage(request, tmp_path):
    folder = tmp_path / "run"
    return LocalStorage(folder) if request.param == "local" else RemoteStorage(f"file://{folder}")


def test_a_second_holder_is_refused_until_the_first_ends(storage):
    with locked(storage):
        held = pytest.raises(Refused, match=rf"another run holds it \(process {os.getpid()} on")
        with held, locked(storage):
            pass
    with locked(storage):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(Refused, match=r"file/run: cannot be written \(Not a directory\); name")
    with refused, locked(LocalStorage(tmp_path / "file" / "run")):
        pass


def held_by(storage, host, process, at):
    record = {"host": host, "process": process, "time": at}
    storage.write(LEASE, json.dumps(record).encode())


@pytest.fixture
def remote(tmp_path):
    return RemoteStorage(f"file://{tmp_path}")


def test_a_lease_that_is_not_renewed_goes_stale(remote, monkeypatch):
    now = 1e9
    monkeypatch.setattr(lock, "time", types.SimpleNamespace(time=lambda: now))
    held_by(remote, "elsewhere", 1, at=now - 50)
    with pytest.raises(Refused, match=r"try again in 70 s"), lease(remote):
        pass
    held_by(remote, "elsewhere", 1, at=now - 121)
    with lease(remote):
        pass


def test_the_lease_of_a_dead_process_of_this_host_is_taken_over(remote):
    held_by(remote, socket.gethostname(), 2**22 + 1, at=time.time() - 1)
    with lease(remote):
        assert json.loads(remote.read(LEASE))["process"] == os.getpid()


def test_a_lease_is_renewed_while_it_is_held(remote, monkeypatch):
    times, renewed, write = [], threading.Event(), remote.write

    def noted(name, data):
        write(name, data)
        times.append(json.loads(data)["time"])
        if len(times) == 3:
            renewed.set()

    monkeypatch.setattr(remote, "write", noted)
    with lease(remote, renew_s=0.05):
        assert renewed.wait(60)
    assert times[0] < times[1] < times[2]
