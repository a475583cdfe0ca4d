"""Writers that are killed at their k-th file operation, or inside of a write, whatever k is.

:class:`Writers` keeps a process, this file as a script, that has imported all and forks a writer
for each line that it reads: it has no threads, no Ray and no connection to be inherited.

An operation is counted before it is done: what Python opens, renames, makes, removes and syncs, and
of pyarrow's file systems, which do that in code of their own, each call. Inside a write the kernel
kills who lets a file grow beyond a limit (SIGXFSZ).
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.fs

from raykb.engine import checkpoint
from raykb.runtime.local_storage import LocalStorage
from raykb.runtime.remote_storage import RemoteStorage

COUNTED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
OLD, NEW = b"old" * 1000, b"newer" * 1000


class Counted:
    """A file system of pyarrow, or a stream of one, of which each call is told to ``count``."""

    def __init__(self, inner, count):
        self._inner, self._count = inner, count

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def counted(*arguments, **named):
            self._count()
            made = found(*arguments, **named)
            return Counted(made, self._count) if name.startswith("open_") else made

        return counted

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class Flat:
    """A file system that renames nothing, as Azure's without hierarchical names."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def move(self, old, new):
        raise NotImplementedError


def local(where):
    return LocalStorage(Path(where))


def remote(where):
    return RemoteStorage(where if "://" in where else f"file://{where}")


def unmovable(where):
    storage = remote(where)
    storage._files = Flat(pyarrow.fs.LocalFileSystem())
    return storage


STORAGES = {"local": local, "remote": remote, "unmovable": unmovable}


# ---------------------------------------------------------------------- what is written


def replace(storage):
    storage.write("file", NEW)


def begin(storage):
    storage.write("new/folder/file", NEW)


def append(storage):
    storage.append("log", {"number": 1})


def rename(storage):
    storage.rename("a", "b")


def save(storage, step=3):
    """Make a checkpoint of two ranks; of those before it all but the newest go."""
    parts = [
        checkpoint.write_part(storage, {"step": step, "rank": rank}, step=step, rank=rank)
        for rank in (0, 1)
    ]
    checkpoint.commit(storage, parts, step=step)


WRITES = {write.__name__: write for write in (replace, begin, append, rename, save)}


def begun(storage):
    """Leave what is there before a writer comes."""
    storage.write("file", OLD)
    storage.write("a/file", OLD)
    storage.append("log", {"number": 0})
    for step in (1, 2):
        save(storage, step)


def content(storage, name):
    """Return what a reader finds under a name, of which nothing may be torn."""
    try:
        return {OLD: "old", NEW: "new"}[storage.read(name)]
    except FileNotFoundError:
        return None


def found(storage):
    """Return what a reader finds, by what was to be written."""
    for folder in checkpoint.folders(storage):
        with contextlib.suppress(FileNotFoundError):  # it was never committed
            for part in checkpoint.manifest(storage, folder):
                checkpoint.read_part(storage, folder, part)
    newest = checkpoint.decode(checkpoint.newest(storage)[0])["step"]
    return {
        "replace": content(storage, "file"),
        "begin": content(storage, "new/folder/file"),
        "append": [record["number"] for record in storage.records("log")],
        "rename": (content(storage, "a/file"), content(storage, "b/file")),
        "save": newest,
    }


BEFORE = {"replace": "old", "begin": None, "append": [0], "rename": ("old", None), "save": 2}
AFTER = {"replace": "new", "begin": "new", "append": [0, 1], "rename": (None, "old"), "save": 3}
BETWEEN = {"rename": ("old", "old")}  # copied and not yet removed


# ---------------------------------------------------------------------- who is killed


def count_all(storage, last):
    """Kill this process at operation ``last``, from 0 on."""
    done = iter(range(last))
    sync = os.fsync

    def count():
        if next(done, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def synced(descriptor):
        count()
        return sync(descriptor)

    if isinstance(storage, LocalStorage):
        os.fsync = synced
        sys.addaudithook(lambda event, arguments: event in COUNTED and count())
    else:
        storage._files = Counted(storage._files, count)


def limit_files(size):
    """Have the kernel kill this process as soon as a file of its own grows beyond a size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def write(kind, where, name, at, size):
    storage = STORAGES[kind](where)
    if at is not None:
        count_all(storage, at)
    if size is not None:
        limit_files(size)
    WRITES[name](storage)


def serve():
    """Fork a writer for each line; say its number, then how it ended: a signal, or 0."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                write(**json.loads(line))
                os._exit(0)
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
                os._exit(1)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Writers:
    """Starts writers, each of which is killed or comes to its end."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error):
        self._process.communicate()

    def killed(self, kind, where, name, *, at=None, size=None, begun=lambda process: None):
        """Have something written; return whether that writer was killed.

        Args:
            kind: of the storage, a key of :data:`STORAGES`.
            where: path or URI.
            name: of what is written, a key of :data:`WRITES`.
            at: operations that it lives for.
            size: bytes that a file of it may have.
            begun: is told the writer's process.
        """
        order = {"kind": kind, "where": str(where), "name": name, "at": at, "size": size}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        begun(int(self._process.stdout.readline()))
        status = int(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL, -signal.SIGXFSZ)
        return status < 0


if __name__ == "__main__":
    serve()
