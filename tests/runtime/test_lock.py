"""A run directory is held by one process, be it a folder or in an object store."""

import concurrent.futures
import errno
import itertools
import json
import os
import pickle
import subprocess
import threading

import pytest

from raykb.runtime import lock
from raykb.runtime.fence import LostLease
from raykb.runtime.lock import Claim, lease, locked
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


@pytest.mark.parametrize(
    ("call", "number", "reason"),
    [("flock", errno.ENOLCK, "No locks available"), ("pwrite", errno.ENOSPC, "No space left")],
)
def test_a_disk_without_locks_or_room_is_refused_by_its_own_name(
    tmp_path, monkeypatch, call, number, reason
):
    def fails(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl if call == "flock" else os, call, fails)
    with (
        pytest.raises(Refused, match=rf"cannot be written \({reason}.*\); name another directory"),
        locked(LocalStorage(tmp_path / "run")),
    ):
        pass


# ---------------------------------------------------------------------- object stores


@pytest.fixture
def remote(tmp_path):
    return RemoteStorage(f"file://{tmp_path}/run")


@pytest.fixture
def elsewhere(monkeypatch):
    """Have every process look as if it were on another host, so that it has to be watched."""
    monkeypatch.setattr(lock, "_kernel", lambda: "")


class Waits:
    """Stands for the clock of a process that waits; ``meanwhile`` is what happens elsewhere."""

    def __init__(self, meanwhile=lambda: None):
        self.seconds, self._meanwhile = 0.0, meanwhile

    def __call__(self, seconds):
        self.seconds += seconds
        self._meanwhile()


def test_a_claim_that_is_renewed_is_alive_whatever_any_clock_says(remote, elsewhere, capsys):
    first = Claim(remote)
    first.take()
    waits = Waits(first.renew)
    with pytest.raises(Refused, match=rf"another run holds it \(process {os.getpid()} on"):
        Claim(remote, look_s=5.0, wait=waits).take()
    assert waits.seconds == 5.0
    assert "looking for 60 s whether that run is alive" in capsys.readouterr().err


def test_a_claim_that_is_silent_for_long_enough_is_taken_over_with_the_next_number(
    remote, elsewhere
):
    Claim(remote).take()
    waits = Waits()
    second = Claim(remote, stale_s=30.0, look_s=4.0, wait=waits)
    second.take()
    assert waits.seconds == 32.0
    assert second.number == 2
    assert [name[:8] for name in remote.files("lease")] == ["00000002"]


def test_a_claim_that_is_given_up_while_it_is_watched_is_not_waited_for_any_longer(
    remote, elsewhere
):
    first = Claim(remote)
    first.take()
    waits = Waits(first.release)
    Claim(remote, look_s=5.0, wait=waits).take()
    assert waits.seconds == 5.0


def must_not_write(storage):
    for write in (
        lambda: storage.write("file", b""),
        lambda: storage.append("log", {}),
        lambda: storage.remove("step-1"),
        lambda: storage.rename("step-1", "new"),
    ):
        with pytest.raises(
            LostLease, match=r"\(as holder 2, after 1\), for this one was not heard"
        ):
            write()


def test_who_comes_late_writes_nothing_any_more_also_when_the_newer_holder_has_ended(
    remote, elsewhere
):
    first, second = Claim(remote), Claim(remote, wait=Waits())
    late = first.take()
    worker = pickle.loads(pickle.dumps(late.below("final/none").below("seed-0")))
    worker.write("step-1/part-00000.pt", b"of the first")
    held = second.take()
    for end in (second.renew, second.release):
        end()
        (name,) = remote.files("lease")
        said = remote.read(f"lease/{name}")
        must_not_write(late)
        must_not_write(worker)
        assert not first.renew()
        first.release()
        assert remote.files("lease") == [name]
        assert remote.read(f"lease/{name}") == said
    held.below("final/none/seed-0").write("result.json", b"of the second")
    assert worker.read("step-1/part-00000.pt") == b"of the first"
    third = Claim(remote)
    third.take()
    assert third.number == 3


class Gated(RemoteStorage):
    """A storage of which a test says when each operation is done."""

    def gate(self):
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        return self

    def _step(self, call):
        self.go.acquire()
        try:
            return call()
        finally:
            self.done.release()

    def files(self, name):
        return self._step(lambda: RemoteStorage.files(self, name))

    def write(self, name, data):
        self._step(lambda: RemoteStorage.write(self, name, data))

    def take(self):
        """Take the run directory; return whether that is done."""
        claim = Claim(self)
        claim._storage = self
        try:
            claim.take()
        except Refused:
            return False
        finally:
            self.done.release(99)
        return True


@pytest.mark.parametrize("past", [0, 1])
def test_of_two_that_take_it_at_once_at_most_one_holds_it_in_whatever_order(tmp_path, past):
    operations = 4  # look, look, write, look
    held = []
    for number, of_first in enumerate(itertools.combinations(range(2 * operations), operations)):
        place = f"file://{tmp_path}/{number}"
        for _ in range(past):
            with lease(RemoteStorage(place)):
                pass
        both = [Gated(place).gate() for _ in range(2)]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(one.take) for one in both]
            for turn in range(2 * operations):
                one = both[turn not in of_first]
                one.go.release()
                one.done.acquire()
            for one in both:
                one.go.release(99)
        held.append(sum(future.result() for future in futures))
    assert set(held) == {0, 1}
    assert held[0] == held[-1] == 1  # one after the other


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"7", b"\xff{", b'{"process": "x", "ended": 1}']
)
def test_a_claim_that_cannot_be_read_is_watched_like_any_other(remote, data):
    remote.write("lease/00000004-abc.json", data)
    waits = Waits()
    claim = Claim(remote, wait=waits)
    claim.take()
    assert (waits.seconds, claim.number) == (60.0, 5)


def test_the_claim_of_a_dead_process_of_this_host_is_taken_over_at_once(remote):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    record = lock._this_process() | {"process": process.pid, "ended": False}
    remote.write("lease/00000001-abc.json", json.dumps(record).encode())
    waits = Waits()
    Claim(remote, wait=waits).take()
    assert waits.seconds == 0
    again = Claim(remote, wait=waits)  # a process that has the number of one that is gone
    record["process"] = os.getpid()
    record["started"] += "0"
    remote.write("lease/00000003-abc.json", json.dumps(record).encode())
    for name in remote.files("lease")[:1]:
        remote.remove(f"lease/{name}")
    again.take()
    assert (waits.seconds, again.number) == (0, 4)


def test_a_lease_is_renewed_while_it_is_held_and_ended_then(remote, monkeypatch):
    records, renewed, write = [], threading.Event(), RemoteStorage.write

    def noted(storage, name, data):
        write(storage, name, data)
        records.append(json.loads(data))
        if len(records) == 3:
            renewed.set()

    monkeypatch.setattr(RemoteStorage, "write", noted)
    with lease(remote, renew_s=0.05):
        assert renewed.wait(60)
    assert [record["renewed"] for record in records] == list(range(1, len(records) + 1))
    assert [record["ended"] for record in records] == [False] * (len(records) - 1) + [True]


def test_what_a_store_without_locks_cannot_promise_is_said(remote, capsys):
    with locked(remote):
        pass
    assert "lease 1; a write that is under way when another run takes over may come after it" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("fragment", ["#x", "#7", "#"])
def test_a_fragment_that_names_no_holder_is_refused(tmp_path, fragment):
    with pytest.raises(ValueError, match=r"has a '#'; leave it out, or write %23"):
        RemoteStorage(f"file://{tmp_path}{fragment}")
