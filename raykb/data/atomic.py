"""Folders that are there whole or not at all, whoever else writes them or is killed at it."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def make_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Have ``write(folder)`` fill what becomes ``target``, unless that is there already.

    Processes that ask at the same time wait for the one that writes. Its files are on the disk
    before the folder has its name; what a killed one left is removed by the next.
    """
    if target.is_dir():
        return
    with locked(target.with_name(f".{target.name}.lock")):
        if target.is_dir():
            return  # another process was first
        partial = target.with_name(f".{target.name}.partial")  # ours alone while we hold the lock
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            write(partial)
            for path in [*partial.rglob("*"), partial]:
                _sync(path)
            partial.rename(target)
            _sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a file; the system lifts it when its holder ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
