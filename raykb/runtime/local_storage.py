"""A run's files in a folder of a mounted disk."""

import contextlib
import errno
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from raykb.data.atomic import TEMPORARY, make_folders, sync, whole_file
from raykb.engine.foreign import parsed
from raykb.engine.names import check_path, sound
from raykb.runtime.retrying import StorageError, retried

_T = TypeVar("_T")


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

        def put() -> None:
            make_folders(path.parent)
            with whole_file(path) as file:
                file.write(data)

        _written(path, put)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON record to the log ``name``; a line cut off by a crash is cut away."""
        path, line = self._path(name), json.dumps(record).encode() + b"\n"

        def put() -> None:
            make_folders(path.parent)
            is_new = not path.exists()
            with path.open("ab+", buffering=0) as file:
                _append(file, line)
            if is_new:
                sync(path.parent)

        _written(path, put)

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of the log ``name``, but for a last line that a crash cut off."""
        with contextlib.suppress(FileNotFoundError):
            for line in self.read(name).splitlines(keepends=True):
                if line.endswith(b"\n"):
                    yield parsed(line)

    def read(self, name: str) -> bytes:
        """Return a file; raises FileNotFoundError."""
        path = self._path(name)
        return _read(path, path.read_bytes)

    def exists(self, name: str) -> bool:
        """Return whether there is a file ``name``."""
        path = self._path(name)
        return _read(path, path.is_file)

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders directly below ``name``, sorted."""
        return self._names(name, Path.is_dir)

    def files(self, name: str = "") -> list[str]:
        """Return the names of the files directly below ``name``, sorted."""
        return self._names(name, Path.is_file)

    def _names(self, name: str, is_kind: Callable[[Path], bool]) -> list[str]:
        path = self._path(name) if name else self.folder

        def listed() -> list[str]:
            children = path.iterdir() if path.is_dir() else ()
            return sound(child.name for child in children if is_kind(child))

        return _read(path, listed)

    def rename(self, name: str, new: str) -> None:
        """Rename a folder."""
        path, target = self._path(name), self._path(new)

        def put() -> None:
            path.rename(target)
            for parent in {path.parent, target.parent}:
                sync(parent)

        _written(path, put)

    def remove(self, name: str) -> None:
        """Remove a folder with all that is in it, or a file; a link is not followed."""
        path = self._path(name)

        def take() -> None:
            if path.is_symlink() or path.is_file():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)

        _written(path, take)

    def temporaries(self) -> list[str]:
        """Return the names of files, at any depth, that a writer began; links are not followed."""
        found = _read(self.folder, lambda: list(self.folder.rglob("*.tmp")))
        names = (path.relative_to(self.folder) for path in found)
        return sorted(each.as_posix() for each in names if TEMPORARY.fullmatch(each.name))

    def sweep(self) -> list[str]:
        """Remove :meth:`temporaries`, whose writers must have died; return their names."""
        for name in (names := self.temporaries()):
            path = self.folder / name
            _written(path, functools.partial(path.unlink, missing_ok=True))
        return names


def _written(path: Path, write: Callable[[], None]) -> None:
    """Write; have an error name the file that was meant, and the room on its disk."""
    try:
        retried(write, str(path))
    except OSError as error:
        reason = f"{error.strerror or error}{_room(path)}"
        raise StorageError(error.errno or errno.EIO, reason, str(path)) from error


def _room(path: Path) -> str:
    with contextlib.suppress(OSError):
        there = next(parent for parent in path.parents if parent.is_dir())
        return f" ({shutil.disk_usage(there).free:,} bytes are free)"
    return ""


def _read(path: Path, read: Callable[[], _T]) -> _T:
    """Read; have an error name the file; one that is not there is for the caller."""
    try:
        return retried(read, str(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(error.errno or errno.EIO, reason, str(path)) from error


def _append(file: Any, line: bytes) -> None:
    """Append a line to a log that is open, unbuffered, after its last whole line, or nothing."""
    begin = _cut_torn_line(file)
    try:
        while line:  # a disk that is almost full takes a part
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):  # so that who tries again does not write it twice
            file.truncate(begin)
        raise


def _cut_torn_line(file: Any) -> int:
    """Cut off what follows the last newline of a log; return the size that is left."""
    size: int = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return size
    file.seek(0)
    whole: int = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(0, os.SEEK_END)
    return whole
