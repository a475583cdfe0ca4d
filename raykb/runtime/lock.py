"""One process at a time in a run directory."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from raykb.data.atomic import make_folders
from raykb.engine.foreign import parsed
from raykb.runtime.fence import FOLDER, claim, number_of
from raykb.runtime.secrets import redacted
from raykb.runtime.sender import brief
from raykb.runtime.session import Refused
from raykb.runtime.storage import LocalStorage, RemoteStorage, Storage

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[Storage]:
    """Hold a run directory, and give it as its holder sees it.

    Raises:
        Refused: another process holds it.
    """
    if isinstance(storage, LocalStorage):
        with _file_lock(storage.folder):
            yield storage
    else:
        with lease(storage) as held:
            yield held


def holder(storage: Storage) -> str:
    """Say who holds a run directory, which nobody takes by being asked; empty if no one does.

    Of an object store whose last holder has not said that it ended, that takes up to a minute.
    """
    if isinstance(storage, LocalStorage):
        return _file_holder(storage.folder / ".lock")
    try:
        Claim(storage).settled()
    except Refused as refusal:
        return str(refusal)
    return ""


def _file_holder(lock: Path) -> str:
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"{lock.parent}: {_owner_of(descriptor)} holds it"
    finally:
        os.close(descriptor)
    return ""


def _owner_of(descriptor: int) -> str:
    return os.pread(descriptor, 1000, 0).decode(errors="replace").strip()


@contextlib.contextmanager
def _file_lock(folder: Path) -> Iterator[None]:
    """Hold a folder by a lock that ends with the process, however it ends."""
    try:
        make_folders(folder)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _refusal(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BlockingIOError as error:
            raise Refused(
                f"{folder}: another run holds it ({_owner_of(descriptor)}); wait for it, or name "
                "another directory"
            ) from error
        except OSError as error:  # a full disk; a network disk that knows no locks
            raise _refusal(folder, error) from error
        yield
    finally:
        os.close(descriptor)


def _refusal(folder: Path, error: OSError) -> Refused:
    return Refused(
        f"{folder}: cannot be written ({error.strerror}); name another directory, or see to "
        "its rights and its disk"
    )


@contextlib.contextmanager
def lease(storage: Storage, *, renew_s: float = 10.0) -> Iterator[RemoteStorage]:
    """Hold an object store's folder by a :class:`Claim` that is renewed all the while."""
    claim, ended = Claim(storage), threading.Event()
    held = claim.take()

    def renew() -> None:
        while not ended.wait(renew_s):
            try:
                if not claim.renew():
                    _say(f"{claim} is lost to another run; this one stops when it next writes")
                    return
            except OSError as error:
                _logger.warning("%s: not renewed: %s", claim, brief(error))

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # the next one waits until it sees that this is over
            claim.release()


class Claim:
    """The claim of one process to a run directory in an object store.

    ::

        <run>/lease/00000007-3f2a….json     host, process, how often it was renewed, whether it is
                                            held yet, whether ended

    Each writes a file of its own alone, so nobody overwrites the claim of another. To take the
    directory is to (1) see that no claim there is alive, (2) write one with the next number, (3)
    see that none has come beside it since (1), and (4) write that it is held now. Who sees others
    at (3) withdraws if one of them holds it or has the smaller name, else looks until they have
    gone. Of two that are there at once, the one that comes to (3) last sees the other, so that
    never both go on to (4), however slow they are; and the smallest withdraws for a holder only, so
    that one of them does. What was there before is then removed.

    A claim is alive while it changes, within a time that the waiting process measures by itself:
    no two hosts' clocks are compared. One of a process of this very host is known at once. Who
    was believed dead and is not finds a newer number before it next writes (:meth:`RemoteStorage.
    held`), also when that newer holder has ended, since its claim stays.

    What is not guaranteed: no store can make a write depend on another object. So a write
    that was begun by a holder, who then was not heard of for ``stale_s`` and was replaced, may
    still land. A store whose lists lag behind its writes (S3, GCS, Azure and HDFS do not) may have
    two holders.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        stale_s: float = 60.0,
        look_s: float = 5.0,
        settle_s: float = 0.2,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._storage = RemoteStorage(storage.place)
        self._stale_s, self._look_s, self._settle_s = stale_s, look_s, settle_s
        self._wait = wait
        self._name, self._renewed, self.number = "", 0, 0

    def __str__(self) -> str:
        return f"{redacted(self._storage.place)}: lease {self.number}"

    def take(self) -> RemoteStorage:
        """Become the holder; return the storage as this holder sees it.

        Raises:
            Refused: another process holds the directory, or wants it at the same moment.
        """
        before = self.settled()  # (1)
        self.number = max(map(number_of, before), default=0) + 1
        self._name = claim(self.number, uuid.uuid4().hex[:12])
        if not self._write(held=False):  # (2)
            raise self._too_late()
        waited = 0.0
        while rivals := self._claims(apart_from={self._name, *before}):  # (3)
            over = any(map(_is_over, rivals.values())) or waited >= self._stale_s
            if over or min(rivals) < self._name or any(map(_is_held, rivals.values())):
                self._storage.remove(f"{FOLDER}/{self._name}")
                if over:  # one came and has ended, or has died: the next number is above its own
                    return self.take()
                raise self._too_late()
            self._wait(self._settle_s)
            waited += self._settle_s
        if not self.renew():  # (4)
            raise self._too_late()
        for name in before:
            self._storage.remove(f"{FOLDER}/{name}")
        _say(f"{self}; a write that is under way when another run takes over may come after it")
        return self._storage.held(self.number)

    def _too_late(self) -> Refused:
        return Refused(
            f"{self._storage.place}: another run takes it at the same moment; wait for that one, "
            "or name another directory"
        )

    def renew(self) -> bool:
        """Say that this process is alive; return False, and write nothing, if it was replaced."""
        return self._write()

    def release(self) -> None:
        """Say that this process has ended; its number stays, for any that come late."""
        if not self._write(ended=True):
            self._storage.remove(f"{FOLDER}/{self._name}")

    def _write(self, *, held: bool = True, ended: bool = False) -> bool:
        names = self._storage.files(FOLDER)
        if max(map(number_of, names), default=0) > self.number:
            return False
        self._renewed += 1
        record = {**_this_process(), "renewed": self._renewed}
        record |= {"held": held, "ended": ended}
        self._storage.write(f"{FOLDER}/{self._name}", json.dumps(record).encode())
        return True

    def settled(self) -> dict[str, bytes]:
        """Return the claims that are there once none is alive; raise Refused where one is."""
        before = now = self._claims()
        waited = 0.0
        while alive := [name for name, data in now.items() if not _is_over(data)]:
            if changed := [n for n in alive if now[n] != before.get(n) or _is_of_here(now[n])]:
                raise Refused(
                    f"{self._storage.place}: another run holds it ({_owner(now[changed[0]])}); "
                    "wait for it, or name another directory"
                )
            if waited >= self._stale_s:
                break
            if not waited:
                _say(
                    f"{redacted(self._storage.place)}: {_owner(now[alive[0]])} held it; looking "
                    f"for {self._stale_s:g} s whether that run is alive"
                )
            self._wait(self._look_s)
            waited += self._look_s
            now = self._claims()
        return now

    def _claims(self, apart_from: Collection[str] = ()) -> dict[str, bytes]:
        """Return what each claim says, by name; nothing for one that has gone meanwhile."""
        claims = {}
        for name in self._storage.files(FOLDER):
            if name in apart_from:
                continue
            with contextlib.suppress(FileNotFoundError):
                claims[name] = self._storage.read(f"{FOLDER}/{name}")
        return claims


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "kernel": _kernel(),
        "started": _started(os.getpid()),
    }


def _kernel() -> str:
    """Return what is the same for processes that see each other in ``/proc``; empty elsewhere."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """Return when a process of this host began, by its kernel's count; empty if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _read(data: bytes) -> dict[str, Any]:
    """Return what a claim says; what cannot be read says nothing, and is alive if it changes."""
    try:
        record = parsed(data)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _is_of_here(data: bytes) -> bool:
    """Return whether a claim is of a process of this host, which then need not be waited for."""
    kernel = _read(data).get("kernel")
    return bool(kernel) and kernel == _kernel()


def _is_over(data: bytes) -> bool:
    record = _read(data)
    if record.get("ended") is True:
        return True
    started, process = record.get("started"), record.get("process")
    return _is_of_here(data) and isinstance(process, int) and _started(process) != started


def _is_held(data: bytes) -> bool:
    """Return whether a claim says so; one that is just being written says nothing."""
    return _read(data).get("held") is True


def _owner(data: bytes) -> str:
    record = _read(data)
    return f"process {record.get('process', '?')} on {record.get('host', '?')}"
