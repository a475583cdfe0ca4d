"""Data sets that torchvision knows where to get: fetched once, whole or not at all."""

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from raykb.data.atomic import locked

T = TypeVar("T")

_refused = ContextVar("refused", default=False)
_ABSENT = (OSError, RuntimeError, ValueError)
WAIT_S = 20.0
_REMEDY = (
    "Without a network: set data.name: fashion_mnist_sample, which comes with the package; or run "
    "with --smoke; or set root to a folder that has the files; or turn IDX files or a folder of "
    "images into Parquet with pipelines/prepare_data.py"
)


@contextmanager
def refused() -> Iterator[None]:
    """Download nothing in the block, as a dry run must not; what is there is opened."""
    before = _refused.set(True)
    try:
        yield
    finally:
        _refused.reset(before)


def is_refused() -> bool:
    """Return whether nothing may be downloaded now."""
    return _refused.get()


def fetch(open_set: Callable[[Path, bool], T], root: Path, *, name: str, download: bool) -> T:
    """Open a data set in ``root``, after getting it if need be.

    Processes that ask at the same time wait for the one that downloads. It does so into a folder
    of its own and moves whole files, so a half download is never taken for the data set.

    Args:
        open_set: ``open_set(folder, download)`` opens the set, and raises if it is not whole.
        root: the folder of data sets.
        name: of the data set, for messages.
        download: get it if it is not in ``root``.

    Raises:
        FileNotFoundError: it is not there, and ``download`` or :func:`refused` forbids to get it.
        ConnectionError: it could not be downloaded.
    """
    try:
        return open_set(root, False)
    except _ABSENT as error:
        missing = f"{name} is not, or not whole, in root={str(root)!r} ({error})"
        if not download:
            raise FileNotFoundError(f"{missing} and download is off.\n{_REMEDY}") from error
        if _refused.get():
            raise FileNotFoundError(
                f"{missing}; a run downloads it into there first; a dry run does not, and cannot "
                f"tell more without it. Leave out --dry-run.\n{_REMEDY}"
            ) from error
    with locked(root / ".lock"):
        with suppress(*_ABSENT):
            return open_set(root, False)  # another process was first
        try:
            _download(open_set, root)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = f"{missing} and could not be downloaded: {error}"
            raise ConnectionError(f"{reason}\n{_REMEDY}") from error
    return open_set(root, False)


def _download(open_set: Callable[[Path, bool], T], root: Path) -> None:
    """Download into ``root/.partial``, ours alone while we hold the lock, and move the files."""
    partial = root / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    try:
        partial.mkdir()
        with bounded_waits():
            open_set(partial, True)
        for path in [path for path in partial.rglob("*") if path.is_file()]:
            target = root / path.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def bounded_waits() -> Iterator[None]:
    """Let no connection of this process stay silent for longer than ``WAIT_S`` seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(WAIT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
