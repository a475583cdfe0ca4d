"""Where a run's files are: a folder on this host, on a shared disk, or in an object store.

A name is relative and stays below the folder: :func:`raykb.engine.names.check_path` says which.
"""

import contextlib
import errno
import itertools
import json
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import pyarrow.fs

from raykb.engine.names import check_part, check_path
from raykb.runtime.fence import FOLDER, Fence, LostLease, number_of, split
from raykb.runtime.secrets import redacted

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs")
_FILE, _FOLDER = pyarrow.fs.FileType.File, pyarrow.fs.FileType.Directory


class StorageError(OSError):
    """A storage cannot be read or written; the message names reason, room where written, file."""


class Storage(Protocol):
    """The files of a run by relative name; a write is whole and durable when it returns.

    Every method raises ValueError for a name that is none, and StorageError where the storage
    does not do what it should.
    """

    @property
    def uri(self) -> str:
        """What :func:`open_storage` takes to give the same storage in another process."""
        ...

    @property
    def place(self) -> str:
        """Where it is, for people and other tools: an absolute path, or a URI."""
        ...

    def below(self, name: str) -> "Storage":
        """Return the storage of the folder ``name``."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing one of that name."""
        ...

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON record to the log ``name``."""
        ...

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of the log ``name`` in order; none where there is no log."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file; raises FileNotFoundError."""
        ...

    def exists(self, name: str) -> bool:
        """Return whether there is a file ``name``."""
        ...

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders directly below ``name``, sorted; odd ones left out."""
        ...

    def files(self, name: str = "") -> list[str]:
        """Return the names of the files directly below ``name``, sorted; odd ones left out."""
        ...

    def rename(self, name: str, new: str) -> None:
        """Rename a folder."""
        ...

    def remove(self, name: str) -> None:
        """Remove a folder with all that is in it, or a file; none is fine."""
        ...


def open_storage(where: str) -> Storage:
    """Return the storage at ``where``, an absolute path or a URI of :data:`SCHEMES`."""
    scheme, separator, rest = where.partition("://")
    if not separator:
        return LocalStorage(Path(where))
    if scheme not in SCHEMES:
        allowed = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"storage: {where!r}, must be a path or one of {allowed}")
    if scheme == "file":
        return LocalStorage(Path(rest))
    return RemoteStorage(where)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that is under ``path`` when it is whole and on the disk, not before."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def check_new(out: Path) -> None:
    """Raise ValueError where a command cannot make its ``--out``: it is there, or no folder is."""
    if out.exists():
        raise ValueError(f"--out {out}: is there already; name another file")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: its folder is not there; make it first")


class LocalStorage:
    """A folder of a mounted disk: temporary name, fsync, rename."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_absolute():
            raise ValueError(f"storage: {str(folder)!r} is relative; give an absolute path")
        self.folder = folder

    @property
    def uri(self) -> str:
        """The absolute path."""
        return str(self.folder)

    place = uri

    def _path(self, name: str) -> Path:
        return self.folder / check_path(name, "name")

    def below(self, name: str) -> "LocalStorage":
        """Return the storage of the folder ``name``."""
        return LocalStorage(self._path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing one of that name."""
        path = self._path(name)
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(data)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON record to the log ``name``; a line cut off by a crash is cut away."""
        path = self._path(name)
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                _cut_torn_line(file)
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of the log ``name``, but for a last line that a crash cut off."""
        path = self._path(name)
        with _read(path), contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def read(self, name: str) -> bytes:
        """Return a file; raises FileNotFoundError."""
        path = self._path(name)
        with _read(path):
            return path.read_bytes()

    def exists(self, name: str) -> bool:
        """Return whether there is a file ``name``."""
        path = self._path(name)
        with _read(path):
            return path.is_file()

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders directly below ``name``, sorted."""
        path = self._path(name) if name else self.folder
        with _read(path):
            children = path.iterdir() if path.is_dir() else ()
            return _sound(child.name for child in children if child.is_dir())

    def files(self, name: str = "") -> list[str]:
        """Return the names of the files directly below ``name``, sorted."""
        path = self._path(name) if name else self.folder
        with _read(path):
            children = path.iterdir() if path.is_dir() else ()
            return _sound(child.name for child in children if child.is_file())

    def rename(self, name: str, new: str) -> None:
        """Rename a folder."""
        path, target = self._path(name), self._path(new)
        with _written(path):
            path.rename(target)

    def remove(self, name: str) -> None:
        """Remove a folder with all that is in it, or a file; a link is not followed."""
        path = self._path(name)
        with _written(path):
            if path.is_symlink() or path.is_file():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)


class RemoteStorage:
    """A folder of an object store, through pyarrow; an object appears whole or not at all.

    A log is a folder of one object a record, since an object cannot be appended to. As a holder
    of the run directory sees it (:mod:`raykb.runtime.fence`), nothing is written once there is a
    newer holder: :class:`LostLease` is raised instead.
    """

    def __init__(self, uri: str) -> None:
        uri, self._fence = split(uri)
        self._uri = uri.rstrip("/")
        base, _, self._query = self._uri.partition("?")
        self._base = base.rstrip("/")
        self._files, path = pyarrow.fs.FileSystem.from_uri(self._uri)
        self._root = PurePosixPath(path)
        self._counters: dict[str, Iterator[int]] = {}

    def __reduce__(self) -> tuple[type["RemoteStorage"], tuple[str]]:
        return RemoteStorage, (self.uri,)

    @property
    def uri(self) -> str:
        """The URI, with the number of the holder as which this writes."""
        return f"{self._uri}{self._fence or ''}"

    @property
    def place(self) -> str:
        """The URI alone."""
        return self._uri

    def held(self, number: int) -> "RemoteStorage":
        """Return this storage as the run directory of holder ``number``."""
        return RemoteStorage(f"{self._uri}{Fence(number)}")

    def below(self, name: str) -> "RemoteStorage":
        """Return the storage of the folder ``name``."""
        query = f"?{self._query}" if self._query else ""
        place = urllib.parse.quote(check_path(name, "name"))
        deeper = self._fence and Fence(self._fence.number, self._fence.depth + 1 + name.count("/"))
        return RemoteStorage(f"{self._base}/{place}{query}{deeper or ''}")

    def _check_held(self) -> None:
        """Raise LostLease where the run directory has a newer holder than the one that writes."""
        if self._fence is None:
            return
        number, depth = self._fence
        run = [self._root, *self._root.parents][depth]
        newest = max(map(number_of, self._children(str(run / FOLDER), _FILE)), default=0)
        if newest > number:
            raise LostLease(
                f"{self._base}: another run has taken over the run directory (as holder {newest}, "
                f"after {number}), for this one was not heard of; it stops and writes no more"
            )

    def _path(self, name: str) -> str:
        return str(self._root / check_path(name, "name"))

    def _kind(self, name: str) -> Any:
        with _reached(f"{self._base}/{name}"):
            return self._files.get_file_info(self._path(name)).type

    def _names(self, name: str, kind: Any) -> list[str]:
        return self._children(self._path(name) if name else str(self._root), kind)

    def _children(self, folder: str, kind: Any) -> list[str]:
        selector = pyarrow.fs.FileSelector(folder, allow_not_found=True)
        with _reached(f"{self._base}, in {folder}"):
            found = self._files.get_file_info(selector)
        return _sound(info.base_name for info in found if info.type == kind)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole object, replacing one of that name."""
        self._check_held()
        path = self._path(name)
        with _reached(f"{self._base}/{name}"):
            self._files.create_dir(str(PurePosixPath(path).parent), recursive=True)
            with self._files.open_output_stream(path) as stream:
                stream.write(data)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Write one JSON record as the next object of the log ``name``."""
        if name not in self._counters:
            self._counters[name] = itertools.count(len(self.files(name)))
        number = next(self._counters[name])
        self.write(f"{name}/{number:08d}.json", json.dumps(record).encode())

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of the log ``name`` in order."""
        for record in self.files(name):
            yield json.loads(self.read(f"{name}/{record}"))

    def read(self, name: str) -> bytes:
        """Return an object; raises FileNotFoundError."""
        path = self._path(name)
        with _reached(f"{self._base}/{name}"), self._files.open_input_stream(path) as stream:
            data: bytes = stream.read()
        return data

    def exists(self, name: str) -> bool:
        """Return whether there is an object ``name``."""
        return bool(self._kind(name) == _FILE)

    def files(self, name: str = "") -> list[str]:
        """Return the names of the objects directly below ``name``, sorted."""
        return self._names(name, _FILE)

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders directly below ``name``, sorted."""
        return self._names(name, _FOLDER)

    def rename(self, name: str, new: str) -> None:
        """Copy a folder's objects to the new name, then remove the old ones."""
        check_path(new, "name")
        self._check_held()
        for file in self.files(name):
            self.write(f"{new}/{file}", self.read(f"{name}/{file}"))
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a folder with all that is in it, or an object."""
        self._check_held()
        path, kind = self._path(name), self._kind(name)
        with _reached(f"{self._base}/{name}"):
            if kind == _FOLDER:
                self._files.delete_dir(path)
            elif kind == _FILE:
                self._files.delete_file(path)


def _sound(names: Iterable[str]) -> list[str]:
    """Return, sorted, the names that a run can have made, and no hidden folder of other tools."""
    sound = []
    for name in names:
        with contextlib.suppress(ValueError):
            sound.append(check_part(name, "name"))
    return sorted(sound)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Have an error of writing name the file that was meant, and the room on its disk."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}{_room(path)}"
        raise StorageError(error.errno or errno.EIO, reason, str(path)) from error


def _room(path: Path) -> str:
    with contextlib.suppress(OSError):
        there = next(parent for parent in path.parents if parent.is_dir())
        return f" ({shutil.disk_usage(there).free:,} bytes are free)"
    return ""


@contextlib.contextmanager
def _read(path: Path) -> Iterator[None]:
    """Have an error of reading name the file; one that is not there is for the caller."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(error.errno or errno.EIO, reason, str(path)) from error


@contextlib.contextmanager
def _reached(place: str) -> Iterator[None]:
    """Have an error of an object store name the object; one that is not there is for the caller."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = " ".join(redacted(str(error)).split())
        raise StorageError(error.errno or errno.EIO, reason, redacted(place)) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_torn_line(file: Any) -> None:
    """Cut off what follows the last newline of a log that is open for appending."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(0, os.SEEK_END)
