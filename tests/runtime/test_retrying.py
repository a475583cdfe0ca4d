"""What a storage may get over is tried again; what it will not, ends a run at once."""

import errno
import os
import re

import pytest

from raykb.runtime import retrying
from raykb.runtime.fence import LostLease
from raykb.runtime.retrying import PATIENCE, StorageError, may_pass, patience_s, pause_s
from raykb.runtime.storage import LocalStorage, RemoteStorage


class Failing:
    """Fails as often as it shall, then does what it stands for; counts the calls."""

    def __init__(self, inner, error, times):
        self._inner, self._error, self._times = inner, error, times
        self.calls = 0

    def __call__(self, *arguments, **named):
        self.calls += 1
        done = self._inner(*arguments, **named)
        if self.calls <= self._times:
            raise self._error
        return done


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made, none of which takes time."""
    made = []
    monkeypatch.setattr(retrying.time, "sleep", made.append)
    return made


def numbered(name):
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


AWS = "When reading for key 'denied/not found' in bucket 'b': AWS Error {} during HeadObject: "


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        *((numbered(name), True) for name in ("EIO", "ESTALE", "ETIMEDOUT", "EROFS", "ECONNRESET")),
        *(
            (numbered(name), False)
            for name in ("ENOENT", "EACCES", "EPERM", "ENOSPC", "EDQUOT", "ENOTDIR", "EISDIR")
        ),
        *(
            (OSError(AWS.format(words)), True)
            for words in ("NETWORK_CONNECTION", "SLOW_DOWN", "UNKNOWN (HTTP status 503)")
        ),
        (OSError(AWS.format("UNKNOWN (HTTP status 429)")), True),
        *(
            (OSError(AWS.format(words)), False)
            for words in ("ACCESS_DENIED", "NO_SUCH_BUCKET", "UNKNOWN (HTTP status 400)")
        ),
        (OSError("google::cloud::Status(PERMISSION_DENIED: no)"), False),
        (OSError("google::cloud::Status(UNAVAILABLE: try later)"), True),
        (OSError("Bucket 'b' not found. To create buckets, …"), False),
        (PermissionError("no"), False),
    ],
    ids=str,
)
def test_a_missing_file_or_right_and_a_full_disk_do_not_pass(error, passes):
    assert may_pass(error) is passes


def test_pauses_grow_to_a_longest_and_differ_between_places():
    found = [pause_s("/run/file", number) for number in range(20)]
    for number, pause in enumerate(found):
        longest = min(0.5 * 2**number, 30)
        assert longest / 2 <= pause < longest
    assert found == [pause_s("/run/file", number) for number in range(20)]
    assert len({pause_s(f"/run/part-{rank}", 0) for rank in range(50)}) == 50


def test_a_disk_that_comes_back_is_written_and_a_record_is_there_once(
    tmp_path, monkeypatch, pauses, caplog
):
    storage = LocalStorage(tmp_path)
    storage.append("log", {"number": 0})
    for name, write in (
        ("file", lambda: storage.write("file", b"whole")),
        ("log", lambda: storage.append("log", {"number": 1})),
    ):
        with monkeypatch.context() as patch:
            failing = Failing(os.fsync, numbered("EIO"), 3)
            patch.setattr(os, "fsync", failing)
            write()
        assert failing.calls > 3
        assert pauses == [pause_s(f"{tmp_path}/{name}", number) for number in range(3)]
        pauses.clear()
        assert f"{tmp_path}/{name}: [Errno 5] Input/output error; tried again in" in caplog.text
    assert storage.read("file") == b"whole"
    assert [record["number"] for record in storage.records("log")] == [0, 1]
    assert storage.temporaries() == []


@pytest.mark.parametrize("operation", ["get_file_info", "open_output_stream", "move"])
def test_an_object_store_that_answers_again_is_written_and_read(tmp_path, pauses, operation):
    storage = RemoteStorage(f"file://{tmp_path}")

    class Flaky:
        """A file system of which one operation fails twice, without a number."""

        def __init__(self, files):
            self._files = files
            failing = Failing(getattr(files, operation), OSError("AWS Error SLOW_DOWN"), 2)
            setattr(self, operation, failing)

        def __getattr__(self, name):
            return getattr(self._files, name)

    storage._files = Flaky(storage._files)
    storage.append("log", {"number": 0})
    storage.append("log", {"number": 1})
    assert len(pauses) == 2
    assert [record["number"] for record in storage.records("log")] == [0, 1]


def test_who_was_replaced_while_it_waited_writes_nothing(tmp_path, monkeypatch):
    storage, other = (
        RemoteStorage(f"file://{tmp_path}").held(7),
        RemoteStorage(f"file://{tmp_path}"),
    )

    class Throttled:
        """A file system that opens no stream."""

        open_output_stream = Failing(lambda path: None, OSError("AWS Error SLOW_DOWN"), 99)

        def __getattr__(self, name):
            return getattr(other._files, name)

    storage._files = Throttled()
    monkeypatch.setattr(
        retrying.time, "sleep", lambda seconds: other.write("lease/00000008-abc.json", b"{}")
    )
    with pytest.raises(LostLease, match="another run has taken over"):
        storage.write("file", b"late")
    assert Throttled.open_output_stream.calls == 1
    assert not other.exists("file")


def test_what_does_not_pass_is_told_at_once(tmp_path, monkeypatch, pauses):
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, numbered("EACCES"), 99))
    with pytest.raises(StorageError, match="Permission denied"):
        LocalStorage(tmp_path).write("file", b"")
    assert pauses == []


@pytest.mark.parametrize("seconds", ["0", "0.6"])
def test_within_its_time_a_storage_is_asked_again_and_then_the_tries_are_told(
    tmp_path, monkeypatch, seconds
):
    monkeypatch.setenv(PATIENCE, seconds)
    failing = Failing(os.fsync, numbered("EIO"), 99)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError) as caught:
        LocalStorage(tmp_path).write("file", b"")
    assert caught.value.errno == errno.EIO
    (tries,) = re.findall(r"Input/output error \(tried (\d+) times in \d s\) \(", str(caught.value))
    assert int(tries) == failing.calls
    assert (failing.calls == 1) is (seconds == "0")


@pytest.mark.parametrize("wrong", ["soon", "-1", "inf", "nan", ""])
def test_a_patience_that_is_no_time_is_refused(monkeypatch, wrong):
    monkeypatch.setenv(PATIENCE, wrong)
    with pytest.raises(ValueError, match=rf"{PATIENCE}: '{wrong}', must be seconds, at least 0"):
        patience_s()
