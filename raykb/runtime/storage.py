"""Where a run's files are: a folder on this host, on a shared disk, or in an object store.

A name is relative and stays below the folder: :func:`raykb.engine.names.check_path` says which.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from raykb.runtime.local_storage import LocalStorage
from raykb.runtime.remote_storage import RemoteStorage
from raykb.runtime.retrying import StorageError

__all__ = [
    "SCHEMES",
    "LocalStorage",
    "RemoteStorage",
    "Storage",
    "StorageError",
    "check_new",
    "open_storage",
]

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs")


class Storage(Protocol):
    """The files of a run by relative name; a write is whole and durable when it returns.

    Who reads meanwhile, or after the writer was killed, finds the file of before or the new one.
    What fails and may pass is tried again (:mod:`raykb.runtime.retrying`). Every method raises
    ValueError for a name that is none, and StorageError where the storage does not do what it
    should.
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

    def temporaries(self) -> list[str]:
        """Return the names of files, at any depth, that a writer began: it is at work, or died."""
        ...

    def sweep(self) -> list[str]:
        """Remove :meth:`temporaries`, whose writers must have died; return their names."""
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


def check_new(out: Path) -> None:
    """Raise ValueError where a command cannot make its ``--out``: it is there, or no folder is."""
    if out.exists():
        raise ValueError(f"--out {out}: is there already; name another file")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: its folder is not there; make it first")
