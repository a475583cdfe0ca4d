"""Storage: whole files, logs that survive a cut, one contract for folders and object stores."""

import errno
import json
import os
import pickle
import signal
from pathlib import Path

import pytest

from raykb.data.atomic import TEMPORARY, temporary_name
from raykb.runtime.lock import locked
from raykb.runtime.storage import LocalStorage, RemoteStorage, StorageError, open_storage


class FileUri(RemoteStorage):
    """The object store's code over a local folder, which pyarrow addresses by a URI too."""


@pytest.fixture(params=["local", "remote"])
def storage(request, tmp_path):
    folder = tmp_path / "run"
    return LocalStorage(folder) if request.param == "local" else FileUri(f"file://{folder}")


def test_what_is_written_is_read_and_replaced_whole(storage):
    assert not storage.exists("a/b.bin")
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"second")
    assert storage.exists("a/b.bin")
    assert storage.read("a/b.bin") == b"second"
    assert storage.below("a").read("b.bin") == b"second"


def test_a_missing_file_is_an_error(storage):
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")


def test_files_are_listed_without_folders_and_odd_names(storage, tmp_path):
    for name in ("x/1.txt", "x/0.txt", "x/deep/3.txt", "top.txt"):
        storage.write(name, b"")
    (tmp_path / "run" / "x" / ".2.txt.tmp").touch()
    assert storage.files() == ["top.txt"]
    assert storage.files("x") == ["0.txt", "1.txt"]
    assert storage.files("nowhere") == []


def test_folders_are_listed_renamed_and_removed(storage):
    for name in ("x/1.txt", "y/2.txt", "y/deep/3.txt"):
        storage.write(name, b"")
    assert storage.folders() == ["x", "y"]
    assert storage.folders("y") == ["deep"]
    assert storage.folders("nowhere") == []
    storage.rename("x", "z")
    storage.remove("y")
    storage.remove("y")
    assert storage.folders() == ["z"]
    assert storage.read("z/1.txt") == b""


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/tmp/out", "a//b", ".lock", "a?b", "a#7"]
)
def test_a_name_that_is_none_is_refused_by_every_method(storage, name):
    for call in (
        storage.below,
        storage.read,
        storage.exists,
        storage.folders,
        storage.files,
        storage.remove,
        lambda name: storage.write(name, b""),
        lambda name: storage.append(name, {}),
        lambda name: list(storage.records(name)),
        lambda name: storage.rename(name, "new"),
        lambda name: storage.rename("old", name),
    ):
        with pytest.raises(ValueError, match="name: "):
            call(name)


def test_folders_of_other_tools_are_not_listed(storage, tmp_path):
    storage.write("a/file", b"")
    for name in (".ipynb_checkpoints", "100%"):
        (tmp_path / "run" / name).mkdir()
    assert storage.folders() == ["a"]


def test_a_name_with_spaces_and_letters_of_any_script_is_one_and_the_same_folder(storage):
    storage.below("größe (2), +x/seed 0").write("file", b"one")
    assert storage.read("größe (2), +x/seed 0/file") == b"one"
    assert storage.below("größe (2), +x").below("seed 0").read("file") == b"one"
    assert storage.folders() == ["größe (2), +x"]


def test_records_come_back_in_order_also_for_a_second_writer(storage):
    assert list(storage.records("log")) == []
    for number in range(12):
        storage.append("log", {"number": number, "value": 0.1 * number})
    again = pickle.loads(pickle.dumps(storage))
    again.append("log", {"number": 12, "value": 0.1 * 12})
    assert list(again.records("log")) == [{"number": n, "value": 0.1 * n} for n in range(13)]


@pytest.mark.parametrize("cut", [1, 5, 17])
def test_a_line_that_a_crash_cut_off_does_not_count_and_is_cut_away(tmp_path, cut):
    storage = LocalStorage(tmp_path)
    for number in range(3):
        storage.append("log", {"number": number, "text": "ünï"})
    path = tmp_path / "log"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [record["number"] for record in storage.records("log")] == [0, 1]
    storage.append("log", {"number": 7})
    lines = path.read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 7]


@pytest.fixture
def synced(monkeypatch):
    """What was brought to the disk, in order."""
    paths, sync = [], os.fsync

    def noted(descriptor):
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return paths


def test_new_folders_are_on_the_disk_before_their_files_and_a_name_after_its_file(tmp_path, synced):
    run = tmp_path / "runs" / "run"
    with locked(LocalStorage(run)):
        assert synced == [tmp_path, tmp_path / "runs"]
        synced.clear()
        LocalStorage(run).write("a/b/file", b"")
    *folders, file, name = synced
    assert folders == [run, run / "a"]
    assert TEMPORARY.fullmatch(file.name)
    assert name == run / "a" / "b"
    synced.clear()
    LocalStorage(run).append("log", {})
    LocalStorage(run).append("log", {})
    assert synced == [run / "log", run, run / "log"]
    synced.clear()
    LocalStorage(run).rename("a/b", "c")
    assert sorted(synced) == [run, run / "a"]


def test_a_failed_write_keeps_the_old_file_and_names_path_and_free_bytes(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    storage.write("file", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write, name in ((storage.write, "file"), (storage.append, "log")):
        told = rf"No space left on device \([\d,]+ bytes are free\): '{tmp_path}/{name}'"
        with pytest.raises(OSError, match=told):
            write(name, b"new" if name == "file" else {"number": 1})
    assert storage.read("file") == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "log"]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "run").touch()
    told = rf"Not a directory \([\d,]+ bytes are free\): '{tmp_path}/run/a/file'"
    with pytest.raises(StorageError, match=told) as caught:
        LocalStorage(tmp_path / "run").write("a/file", b"")
    assert caught.value.errno == errno.ENOTDIR


def test_what_a_storage_cannot_do_is_its_own_error_that_names_the_file(storage, tmp_path):
    (tmp_path / "run" / "log" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "file").touch()
    for call, name in (
        (lambda: storage.read("log"), "log"),
        (lambda: storage.write("log", b""), "log"),
        (lambda: storage.write("file/x", b""), "file/x"),
        (lambda: storage.append("file/x", {}), "file/x"),
    ):
        with pytest.raises(StorageError, match=f"run/{name}") as caught:
            call()
        again = pickle.loads(pickle.dumps(caught.value))  # as it comes from a worker
        assert type(again) is StorageError
        assert str(again) == str(caught.value)


def test_an_error_of_an_object_store_is_told_without_secrets(tmp_path, monkeypatch):
    class Refusing:
        def get_file_info(self, path):
            raise OSError("When getting s3://me:abc@b/x: AWS Error ACCESS_DENIED")

    storage = FileUri(f"file://{tmp_path}")
    storage._files = Refusing()
    with pytest.raises(StorageError, match=r"s3://\*\*\*@b/x: AWS Error ACCESS_DENIED: 'file://"):
        storage.exists("x")


class Stopped(BaseException):
    """What the handler of a signal raises."""


class Interrupting:
    """A store of which an object is there once its stream is closed; a signal comes with it."""

    type_name = "s3"

    def __init__(self, files):
        self._files = files

    def __getattr__(self, name):
        return getattr(self._files, name)

    def open_output_stream(self, path):
        stream = self._files.open_output_stream(path)
        os.kill(os.getpid(), signal.SIGUSR1)
        return stream


def test_a_signal_in_the_middle_of_a_write_leaves_the_whole_object(tmp_path):
    def stop(number, frame):
        raise Stopped

    storage = FileUri(f"file://{tmp_path}/run")
    storage.write("file", b"old")
    storage._files = Interrupting(storage._files)
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped):
            storage.write("file", b"whole")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert storage.read("file") == b"whole"


def test_links_are_removed_and_what_they_point_to_stays(storage, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    storage.write("folder/deep/file", b"")
    for link in ("link", "folder/link", "folder/deep/link"):
        (tmp_path / "run" / link).symlink_to(precious)
    storage.remove("folder")
    if isinstance(storage, LocalStorage):  # object stores have no links
        storage.remove("link")
        assert list((tmp_path / "run").iterdir()) == []
    assert [path.name for path in precious.iterdir()] == ["file"]


def test_of_dead_writers_goes_what_they_began_and_nothing_behind_a_link(tmp_path):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    own = [run / temporary_name("file"), run / "deep" / "folder" / temporary_name("file")]
    others = [elsewhere / temporary_name("file"), run / "mine.tmp", run / ".file.tmp"]
    for path in (*own, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (run / "link").symlink_to(elsewhere)
    (run / "deep" / temporary_name("link")).symlink_to(others[0])
    storage = LocalStorage(run)
    names = storage.temporaries()
    assert len(names) == 3
    assert {str(path.relative_to(run)) for path in own} < set(names)
    assert storage.sweep() == names
    assert storage.temporaries() == []
    assert all(path.exists() for path in others)


def test_a_place_is_opened_by_its_form(tmp_path):
    assert isinstance(open_storage(str(tmp_path)), LocalStorage)
    assert open_storage(f"file://{tmp_path}").uri == str(tmp_path)


@pytest.mark.parametrize("where", ["http://host/x", "ftp://host/x", "S3x://b"])
def test_an_unknown_scheme_is_refused_with_those_allowed(where):
    with pytest.raises(ValueError, match=r"must be a path or one of file://, s3://"):
        open_storage(where)


def test_a_relative_path_is_refused():
    with pytest.raises(ValueError, match="storage: 'runs' is relative; give an absolute path"):
        LocalStorage(Path("runs"))


class MadeJustThen:
    """pyarrow's file system where a folder is made between its look for it and its listing."""

    def get_file_info(self, selector):
        raise FileNotFoundError(f"Cannot list directory {selector.base_dir!r}")


def test_a_folder_that_is_made_while_it_is_listed_is_empty(tmp_path):
    storage = RemoteStorage(f"file://{tmp_path}")
    storage._files = MadeJustThen()
    assert storage.files("lease") == []
    assert storage.folders() == []
