"""A run directory and its lease by the protocol of S3, as moto's server speaks it.

``MOTO_SERVER`` names the command, of an environment of its own, since it comes with many packages;
without it these tests are skipped::

    python -m venv /tmp/moto && /tmp/moto/bin/pip install 'moto[server]'
    MOTO_SERVER=/tmp/moto/bin/moto_server pytest -m slow tests/runtime/test_object_store.py

With moto 5.2.5 all held, 28 November 2026; 5.2.1 of another environment completed no upload.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
import uuid

import pyarrow.fs
import pytest
from shared_deaths import NEW, OLD, Writers

from raykb.runtime import retrying
from raykb.runtime.fence import FOLDER, LostLease
from raykb.runtime.lock import Claim, holder, locked
from raykb.runtime.retrying import PATIENCE, StorageError
from raykb.runtime.session import Refused
from raykb.runtime.storage import open_storage

pytestmark = pytest.mark.slow
KEYS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_EC2_METADATA_DISABLED": "true",
}
QUICK = {"stale_s": 0.2, "look_s": 0.05}


@pytest.fixture(scope="module")
def bucket(home, tmp_path_factory):
    """What comes before and after the key in the URI of an object."""
    command = os.environ.get("MOTO_SERVER")
    if command is None:
        pytest.skip("MOTO_SERVER names no command (pip install 'moto[server]' gives one)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    query = f"?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    log = tmp_path_factory.mktemp("moto") / "log.txt"
    with (
        log.open("w") as file,
        subprocess.Popen([command, "-p", str(port)], stdout=file, stderr=file) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in KEYS.items():
            patch.setenv(name, value)
        try:
            _until_it_answers(port, process, log)
            store = pyarrow.fs.FileSystem.from_uri(
                f"s3://bucket{query}&allow_bucket_creation=true"
            )[0]
            store.create_dir("bucket")
            yield "s3://bucket/", query
        finally:
            process.terminate()


def _until_it_answers(port, process, log):
    end = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)


class Wire:
    """A way to the store that can be cut, and that kills who has sent so many bytes on it."""

    def __init__(self, port):
        self._store, self._server = port, socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.is_whole, self.sent, self.limit, self.victim = True, 0, None, None
        self._start(self._accept)

    def _start(self, function, *arguments):
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):  # of the end
            while True:
                caller, _ = self._server.accept()
                if not self.is_whole:
                    caller.close()
                    continue
                store = socket.create_connection(("127.0.0.1", self._store))
                self._start(self._pump, caller, store, self._count)
                self._start(self._pump, store, caller, lambda count: True)

    def _pump(self, source, target, passes):
        with contextlib.suppress(OSError), source, target:
            while (data := source.recv(200)) and passes(len(data)):
                target.sendall(data)

    def _count(self, count):
        self.sent += count
        if self.limit is None or self.sent <= self.limit:
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.victim, signal.SIGKILL)
        return False

    def close(self):
        self._server.close()


@pytest.fixture
def wire(bucket):
    _, query = bucket
    made = Wire(int(query.partition("127.0.0.1:")[2].partition("&")[0]))
    yield made
    made.close()


def by_wire(uri, wire):
    """Return the URI of a run by way of a wire."""
    return f"{uri.partition('127.0.0.1:')[0]}127.0.0.1:{wire.port}&region=us-east-1"


@pytest.fixture
def run(bucket):
    """The storage of a run of its own."""
    return open_storage(uuid.uuid4().hex.join(bucket))


def test_files_and_logs_are_what_was_written(run):
    run.write("training/final.pt", b"weights")
    for number in range(3):
        run.append("ledger.jsonl", {"number": number})
    again = open_storage(run.uri)
    assert again.read("training/final.pt") == b"weights"
    assert [record["number"] for record in again.records("ledger.jsonl")] == [0, 1, 2]
    again.rename("training", "old")
    assert (run.exists("training/final.pt"), run.files("old")) == (False, ["final.pt"])
    run.remove("old")
    assert not run.exists("old/final.pt")
    with pytest.raises(FileNotFoundError):
        run.read("old/final.pt")


def test_of_two_that_take_it_at_once_one_holds_it(bucket):
    together, held = threading.Barrier(2), []

    def take(place):
        claim = Claim(open_storage(place))
        together.wait()
        with contextlib.suppress(Refused):
            held.append(claim.take().place)

    places = [uuid.uuid4().hex.join(bucket) for _ in range(10)]
    for place in places:
        threads = [threading.Thread(target=take, args=[place]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert held == places


def test_who_holds_it_refuses_others_until_it_ends(run):
    with locked(run) as held:
        held.write("x", b"mine")
        assert "another run holds it" in holder(run)
        with pytest.raises(Refused, match="another run holds it"):
            Claim(open_storage(run.uri)).take()
    assert holder(run) == ""
    with locked(open_storage(run.uri)) as held:
        assert held.read("x") == b"mine"


def test_who_was_replaced_writes_no_more(run):
    first = Claim(run)
    held = first.take()
    _moved_to_another_host(run)
    second = Claim(run, **QUICK)
    newer = second.take()
    assert second.number == first.number + 1
    with pytest.raises(LostLease, match="another run has taken over"):
        held.write("x", b"late")
    assert not first.renew()
    newer.write("x", b"new")
    second.release()
    with pytest.raises(LostLease):
        held.write("x", b"later")
    assert run.read("x") == b"new"


def _moved_to_another_host(run):
    """Have a claim be of a process that cannot be asked here."""
    [name] = run.files(FOLDER)
    record = json.loads(run.read(f"{FOLDER}/{name}")) | {"host": "elsewhere", "kernel": "other"}
    run.write(f"{FOLDER}/{name}", json.dumps(record).encode())


def test_a_claim_that_cannot_be_read_is_waited_for_and_passed_over(run):
    run.write(f"{FOLDER}/00000009-torn.json", b"\x00{")
    claim = Claim(run, **QUICK)
    claim.take().write("x", b"")
    assert claim.number == 10
    assert len(run.files(FOLDER)) == 1


# ---------------------------------------------------------------------- kills and cuts


@pytest.fixture(scope="module")
def writers(bucket):
    with Writers() as started:  # it knows the keys
        yield started


def replaced(run, kill):
    """Have writers replace a file, each killed by ``kill(uri, number)``, until one is not killed.

    Returns what is read after each of them.
    """
    fates = []
    for number in itertools.count():
        run.write("file", OLD)
        was_killed = kill(run.uri, number)
        fates.append({OLD: "old", NEW: "new"}[run.read("file")])
        if not was_killed:
            return fates


def test_a_writer_that_is_killed_leaves_the_old_or_the_new(writers, run):
    fates = replaced(run, lambda uri, at: writers.killed("remote", uri, "replace", at=at))
    assert len(fates) > 4
    assert [fate for fate, _ in itertools.groupby(fates)] == ["old", "new"]


def test_a_writer_that_is_killed_while_it_sends_leaves_the_old_or_the_new(writers, run, wire):
    def aim(process):
        wire.victim = process

    def kill(uri, number):
        wire.sent, wire.limit = 0, 100 + 1500 * number
        return writers.killed("remote", by_wire(uri, wire), "replace", begun=aim)

    fates = replaced(run, kill)
    assert wire.limit > len(NEW)  # what is written was on its way
    assert (fates[0], fates[-1]) == ("old", "new")


def test_a_store_that_answers_again_is_written_and_one_that_does_not_is_told(
    run, wire, monkeypatch
):
    storage, pauses = open_storage(by_wire(run.uri, wire)), []

    def pause(place, number):
        pauses.append(place)
        wire.is_whole = True
        return 0.01

    monkeypatch.setattr(retrying, "pause_s", pause)
    wire.is_whole = False
    storage.write("file", b"whole")
    assert pauses == [f"{storage.uri.partition('?')[0]}/file"]
    assert run.read("file") == b"whole"

    monkeypatch.setenv(PATIENCE, "0")
    wire.is_whole = False
    monkeypatch.setattr(retrying, "pause_s", lambda place, number: 1.0)
    with pytest.raises(StorageError, match=r"AWS Error NETWORK_CONNECTION .* \(tried 1 times in"):
        storage.write("file", b"other")
    assert run.read("file") == b"whole"


def test_a_bucket_that_is_not_there_is_told_at_once(bucket, monkeypatch):
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: pytest.fail("it was tried again"))
    storage = open_storage(f"s3://nowhere/run{bucket[1]}")
    with pytest.raises(StorageError, match=r"Bucket 'nowhere' not found"):
        storage.write("file", b"")
