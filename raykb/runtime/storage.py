"""Where a run's files are: a folder on this host, on a shared disk, or in an object store."""

import contextlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import pyarrow.fs

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs")


class Storage(Protocol):
    """The files of a run by relative name; a write is whole and durable when it returns."""

    @property
    def uri(self) -> str:
        """Where it is: an absolute path, or a URI."""
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
        """Return the names of the folders directly below ``name``, sorted."""
        ...

    def rename(self, name: str, new: str) -> None:
        """Rename a folder."""
        ...

    def remove(self, name: str) -> None:
        """Remove a folder with all that is in it; none is fine."""
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

    def below(self, name: str) -> "LocalStorage":
        """Return the storage of the folder ``name``."""
        return LocalStorage(self.folder / name)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing one of that name."""
        path = self.folder / name
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(data)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON record to the log ``name``; a line cut off by a crash is cut away."""
        path = self.folder / name
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                _cut_torn_line(file)
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of the log ``name``, but for a last line that a crash cut off."""
        path = self.folder / name
        if not path.exists():
            return
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def read(self, name: str) -> bytes:
        """Return a file; raises FileNotFoundError."""
        return (self.folder / name).read_bytes()

    def exists(self, name: str) -> bool:
        """Return whether there is a file ``name``."""
        return (self.folder / name).is_file()

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders directly below ``name``, sorted."""
        path = self.folder / name
        return (
            sorted(child.name for child in path.iterdir() if child.is_dir())
            if path.is_dir()
            else []
        )

    def rename(self, name: str, new: str) -> None:
        """Rename a folder."""
        (self.folder / name).rename(self.folder / new)

    def remove(self, name: str) -> None:
        """Remove a folder with all that is in it; a link is not followed."""
        path = self.folder / name
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


class RemoteStorage:
    """A folder of an object store, through pyarrow; an object appears whole or not at all.

    A log is a folder of one object a record, since an object cannot be appended to.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        base, _, self._query = self._uri.partition("?")
        self._base = base.rstrip("/")
        self._files, path = pyarrow.fs.FileSystem.from_uri(self._uri)
        self._root = PurePosixPath(path)
        self._counters: dict[str, Iterator[int]] = {}

    def __reduce__(self) -> tuple[type["RemoteStorage"], tuple[str]]:
        return RemoteStorage, (self._uri,)

    @property
    def uri(self) -> str:
        """The URI."""
        return self._uri

    def below(self, name: str) -> "RemoteStorage":
        """Return the storage of the folder ``name``."""
        query = f"?{self._query}" if self._query else ""
        return RemoteStorage(f"{self._base}/{name}{query}")

    def _path(self, name: str) -> str:
        return str(self._root / name)

    def _names(self, name: str, kind: Any) -> list[str]:
        selector = pyarrow.fs.FileSelector(self._path(name), allow_not_found=True)
        return sorted(i.base_name for i in self._files.get_file_info(selector) if i.type == kind)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole object, replacing one of that name."""
        self._files.create_dir(str(PurePosixPath(self._path(name)).parent), recursive=True)
        with self._files.open_output_stream(self._path(name)) as stream:
            stream.write(data)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Write one JSON record as the next object of the log ``name``."""
        if name not in self._counters:
            self._counters[name] = itertools.count(len(self._names(name, pyarrow.fs.FileType.File)))
        number = next(self._counters[name])
        self.write(f"{name}/{number:08d}.json", json.dumps(record).encode())

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of the log ``name`` in order."""
        for record in self._names(name, pyarrow.fs.FileType.File):
            yield json.loads(self.read(f"{name}/{record}"))

    def read(self, name: str) -> bytes:
        """Return an object; raises FileNotFoundError."""
        with self._files.open_input_stream(self._path(name)) as stream:
            data: bytes = stream.read()
        return data

    def exists(self, name: str) -> bool:
        """Return whether there is an object ``name``."""
        info = self._files.get_file_info(self._path(name))
        return bool(info.type == pyarrow.fs.FileType.File)

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders directly below ``name``, sorted."""
        return self._names(name, pyarrow.fs.FileType.Directory)

    def rename(self, name: str, new: str) -> None:
        """Copy a folder's objects to the new name, then remove the old ones."""
        for file in self._names(name, pyarrow.fs.FileType.File):
            self.write(f"{new}/{file}", self.read(f"{name}/{file}"))
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a folder with all that is in it."""
        if self._files.get_file_info(self._path(name)).type == pyarrow.fs.FileType.Directory:
            self._files.delete_dir(self._path(name))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have an error of writing name the file that was meant, and the room on its disk."""
    try:
        yield
    except OSError as error:
        there = next(parent for parent in path.parents if parent.is_dir())
        free = shutil.disk_usage(there).free
        reason = f"{os.strerror(error.errno or 0)} ({free:,} bytes are free)"
        raise OSError(error.errno, reason, str(path)) from error


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
