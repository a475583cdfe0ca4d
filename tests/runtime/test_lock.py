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
import torch.distributed as dist

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
        claim = Claim(self, settle_s=0.0)
        claim._storage = self
        try:
            claim.take()
        except Refused:
            return False
        finally:
            self.done.release(99)
        return True


@pytest.mark.parametrize("past", [0, 1])
def test_of_two_that_take_it_at_once_one_holds_it_in_whatever_order(tmp_path, past):
    operations = 5  # look, look, write, look, look; what is left is done as it comes
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
    assert set(held) == {1}


def takes(place, rounds):
    """Return in which rounds this process came to hold a directory that all take at once."""
    held = []
    for number in range(rounds):
        claim = Claim(RemoteStorage(f"{place}/{number}"), look_s=0.001, settle_s=0.001)
        dist.barrier()
        try:
            claim.take()
            held.append(number)
        except Refused:
            pass
        dist.barrier()
    return held


def test_of_processes_that_take_it_at_once_each_time_one_holds_it(gloo, tmp_path):
    first, second = gloo.run(takes, f"file://{tmp_path}", 60, size=2)
    assert sorted(first + second) == list(range(60))


def comes_beside(claim, storage, name, says):
    """Have another begin when a claim has seen that nobody holds a directory that is new."""
    settled = claim.settled

    def and_another():
        found = settled()
        if not storage.files("lease"):
            storage.write(f"lease/{name}", json.dumps(says).encode())
        return found

    claim.settled = and_another


def test_a_rival_that_falls_silent_is_passed_over_by_a_number_above_its_own(remote, elsewhere):
    waits = Waits()
    claim = Claim(remote, stale_s=30.0, look_s=5.0, settle_s=3.0, wait=waits)
    comes_beside(claim, remote, "00000001-zz.json", {"host": "far", "held": False})
    claim.take()
    assert claim.number == 2
    assert waits.seconds == 60.0  # as long as it may be slow, then as any that is silent
    assert [name[:8] for name in remote.files("lease")] == ["00000002"]


@pytest.mark.parametrize(
    ("name", "says", "holds"),
    [
        ("00000001-00.json", {"held": False}, False),  # the smaller name
        ("00000001-zz.json", {"held": True}, False),
        ("00000001-zz.json", {"held": False, "ended": True}, True),
    ],
)
def test_who_comes_at_once_withdraws_for_a_smaller_name_and_for_a_holder(
    remote, elsewhere, name, says, holds
):
    claim = Claim(remote, wait=Waits())
    comes_beside(claim, remote, name, says)
    if holds:  # with a number above that of the one that has ended
        claim.take()
        assert claim.number == 2
        return
    with pytest.raises(Refused, match="another run takes it at the same moment"):
        claim.take()
    assert remote.files("lease") == [name]


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
