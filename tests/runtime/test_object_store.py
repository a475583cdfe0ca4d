"""A run directory and its lease by the protocol of S3, as moto's server speaks it.

``MOTO_SERVER`` names the command, of an environment of its own, since it comes with many packages;
without it these tests are skipped::

    python -m venv /tmp/moto && /tmp/moto/bin/pip install 'moto[server]'
    MOTO_SERVER=/tmp/moto/bin/moto_server pytest -m slow tests/runtime/test_object_store.py

With moto 5.2.5 all held, 28 November 2026; 5.2.1 of another environment completed no upload.
"""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import uuid

import pyarrow.fs
import pytest

from raykb.runtime.fence import FOLDER, LostLease
from raykb.runtime.lock import Claim, holder, locked
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
