"""Files and folders that are there whole or not at all, whoever else writes them or is killed."""

import fcntl
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""Names of files that are being written, or were when their writer died."""


def temporary_name(name: str) -> str:
    """Return the name that a file has until it is whole; nobody else is given the same."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that is under ``path`` when it is whole and on the disk, not before."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # what a disk does not let go of is for the next start
            temporary.unlink()
    sync(path.parent)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing; each is on the disk when this returns."""
    missing = itertools.takewhile(lambda each: not each.exists(), [folder, *folder.parents])
    for each in reversed(list(missing)):
        each.mkdir(exist_ok=True)
        sync(each.parent)


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
                sync(path)
            partial.rename(target)
            sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a file; the system lifts it when its holder ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
