"""A run's files in an object store."""

import contextlib
import errno
import functools
import itertools
import json
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, TypeVar

import pyarrow.fs

from raykb.data.atomic import TEMPORARY, temporary_name
from raykb.engine.foreign import parsed
from raykb.engine.names import check_path, sound
from raykb.runtime.fence import FOLDER, Fence, LostLease, number_of, split
from raykb.runtime.retrying import StorageError, retried
from raykb.runtime.secrets import redacted

_FILE, _FOLDER = pyarrow.fs.FileType.File, pyarrow.fs.FileType.Directory
_WHOLE = ("s3", "gcs")  # stores in which an object appears, or is replaced, when its stream closes
_T = TypeVar("_T")


class RemoteStorage:
    """A folder of an object store, through pyarrow; an object appears whole or not at all.

    S3 and GCS have an object once its stream is closed. Other stores show an open stream, so there
    an object gets its name when it is whole: by a rename, or by a copy within the store where that
    has no renames, as Azure without hierarchical names.

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

    def _kind(self, path: str) -> Any:
        return self._files.get_file_info(path).type

    def _names(self, name: str, kind: Any) -> list[str]:
        folder = self._path(name) if name else str(self._root)
        return _reached(f"{self._base}, in {folder}", lambda: self._children(folder, kind))

    def _children(self, folder: str, kind: Any) -> list[str]:
        selector = pyarrow.fs.FileSelector(folder, allow_not_found=True)
        try:
            found = self._files.get_file_info(selector)
        except FileNotFoundError:  # pyarrow's, of a folder that another process makes just then
            return []
        return sound(info.base_name for info in found if info.type == kind)

    def _change(self, name: str, change: Callable[[str], None]) -> None:
        """Have ``change`` of the path of ``name`` be done while this is the holder, and whole.

        It is done in a thread, which no signal interrupts: a stream that is left is closed, and
        what was written of it by then would be the object.
        """
        path = self._path(name)

        def held() -> None:
            self._check_held()
            change(path)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(_reached, f"{self._base}/{name}", held).result()

    def write(self, name: str, data: bytes) -> None:
        """Write a whole object, replacing one of that name."""
        self._change(name, functools.partial(self._put, data))

    def _put(self, data: bytes, path: str) -> None:
        folder, _, file = path.rpartition("/")
        self._files.create_dir(folder, recursive=True)
        if self._files.type_name in _WHOLE:
            self._stream(data, path)
            return
        temporary = f"{folder}/{temporary_name(file)}"
        try:
            self._stream(data, temporary)
            try:
                self._files.move(temporary, path)
            except NotImplementedError:
                self._files.copy_file(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # where it was moved, there is none
                self._files.delete_file(temporary)

    def _stream(self, data: bytes, path: str) -> None:
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
            yield parsed(self.read(f"{name}/{record}"))

    def read(self, name: str) -> bytes:
        """Return an object; raises FileNotFoundError."""
        path = self._path(name)

        def whole() -> bytes:
            with self._files.open_input_stream(path) as stream:
                data: bytes = stream.read()
            return data

        return _reached(f"{self._base}/{name}", whole)

    def exists(self, name: str) -> bool:
        """Return whether there is an object ``name``."""
        path = self._path(name)
        return _reached(f"{self._base}/{name}", lambda: bool(self._kind(path) == _FILE))

    def files(self, name: str = "") -> list[str]:
        """Return the names of the objects directly below ``name``, sorted."""
        return self._names(name, _FILE)

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders directly below ``name``, sorted."""
        return self._names(name, _FOLDER)

    def rename(self, name: str, new: str) -> None:
        """Copy a folder's objects to the new name, then remove the old ones."""
        check_path(new, "name")
        for file in self.files(name):
            self.write(f"{new}/{file}", self.read(f"{name}/{file}"))
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a folder with all that is in it, or an object."""
        self._change(name, self._take)

    def _take(self, path: str) -> None:
        if (kind := self._kind(path)) == _FOLDER:
            self._files.delete_dir(path)
        elif kind == _FILE:
            self._files.delete_file(path)

    def temporaries(self) -> list[str]:
        """Return the names of objects, at any depth, that a writer began; none where none can be.

        What S3 keeps of an upload that was not completed has no name; a rule of the bucket
        (AbortIncompleteMultipartUpload) removes it.
        """
        if self._files.type_name in _WHOLE:
            return []
        selector = pyarrow.fs.FileSelector(str(self._root), allow_not_found=True, recursive=True)
        found = _reached(self._base, lambda: self._files.get_file_info(selector))
        names = (PurePosixPath(info.path).relative_to(self._root) for info in found)
        return sorted(str(each) for each in names if TEMPORARY.fullmatch(each.name))

    def sweep(self) -> list[str]:
        """Remove :meth:`temporaries`, whose writers must have died; return their names."""
        for name in (names := self.temporaries()):
            take = functools.partial(self._files.delete_file, str(self._root / name))
            with contextlib.suppress(FileNotFoundError):
                _reached(f"{self._base}/{name}", take)
        return names


def _reached(place: str, operation: Callable[[], _T]) -> _T:
    """Ask an object store; have an error name the object; a missing one is for the caller."""
    try:
        return retried(operation, place)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = " ".join(redacted(error.strerror or str(error)).split())
        raise StorageError(error.errno or errno.EIO, reason, redacted(place)) from error
