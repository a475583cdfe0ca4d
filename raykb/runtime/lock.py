"""One process at a time in a run directory."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from raykb.runtime.session import Refused
from raykb.runtime.storage import LocalStorage, Storage

LEASE = "lease.json"

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Hold a run directory; raises :class:`Refused` where another process holds it."""
    lock = _file_lock(storage.folder) if isinstance(storage, LocalStorage) else lease(storage)
    with lock:
        yield


@contextlib.contextmanager
def _file_lock(folder: Path) -> Iterator[None]:
    """Hold a folder by a lock that ends with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / ".lock").open("a+")
    except OSError as error:
        raise Refused(
            f"{folder}: cannot be written ({error.strerror}); name another directory, or see to "
            "its rights and its disk"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise Refused(
                f"{folder}: another run holds it ({file.read().strip()}); wait for it, or name "
                "another directory"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextlib.contextmanager
def lease(storage: Storage, *, renew_s: float = 30.0, stale_s: float = 120.0) -> Iterator[None]:
    """Hold an object store's folder by an object that is written anew all the while.

    A holder that was killed is believed dead after ``stale_s``, or at once on its own host.
    """
    host, process = socket.gethostname(), os.getpid()
    if storage.exists(LEASE):
        holder = json.loads(storage.read(LEASE))
        age = time.time() - holder["time"]
        gone = holder["host"] == host and not Path(f"/proc/{holder['process']}").exists()
        if age < stale_s and not gone:
            raise Refused(
                f"{storage.uri}: another run holds it (process {holder['process']} on "
                f"{holder['host']}, {age:.0f} s ago); wait for it, name another directory, or, if "
                f"it was killed, try again in {stale_s - age:.0f} s"
            )

    def write(now: float) -> None:
        record = {"host": host, "process": process, "time": now}
        storage.write(LEASE, json.dumps(record).encode())

    def renew() -> None:
        while not ended.wait(renew_s):
            try:
                write(time.time())
            except OSError as error:
                _logger.warning("%s: the lease could not be renewed: %s", storage.uri, error)

    ended = threading.Event()
    write(time.time())
    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write(0.0)
