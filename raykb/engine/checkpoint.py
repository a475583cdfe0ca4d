"""Checkpoints that are whole or do not count: parts by rank, made valid by a manifest.

The folder of a training holds one folder per checkpoint:

    step-00000400/part-00000.pt     the state of rank 0            [1]
    step-00000400/part-00001.pt     the state of rank 1            [1]
    step-00000400/manifest.json     names, sizes and hashes        [2]

Every rank writes its part [1], with its random state and data position inside; when all are
durable, rank 0 writes the manifest [2]. A reader takes the newest checkpoint whose manifest is
there and whose parts have the hashes that it names; anything else is as if it did not exist. Which
is newest the steps in their names say, no clock. All is read again once it is written, and only
then do older checkpoints go, each manifest before its parts.
Where each rank's state is its own share of a model, the manifest says which names a part holds
(:mod:`raykb.engine.shards`).
"""

import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from raykb.engine.foreign import check_archive, parsed
from raykb.engine.names import check_part

SCHEMA = 1
_MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-\d{8,}")

Tell = Callable[[str], None]
"""``tell(line)`` hands a person what is to be known of a checkpoint."""

_logger = logging.getLogger(__name__)


class Store(Protocol):
    """A folder of files by name, where a write is whole and durable when it returns."""

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing one of that name."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file; raises FileNotFoundError."""
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


class Damaged(Exception):
    """A manifest cannot be read, or a part does not have the hash that its manifest names."""


@dataclass(frozen=True)
class Part:
    """What the manifest says of one rank's file.

    Attributes:
        name: the file's.
        bytes: its size.
        sha256: of its bytes.
        holds: bytes of each of the model's tensors in it, by name; empty where no share is held.
    """

    name: str
    bytes: int
    sha256: str
    holds: dict[str, int] = field(default_factory=dict)


def encode(state: Any) -> bytes:
    """Return ``state`` (plain values and tensors) as bytes that :func:`decode` reads."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def decode(data: bytes) -> Any:
    """Return the state in ``data``, on the CPU.

    Raises:
        ValueError: it is damaged, takes more memory than it has bytes, or holds anything but plain
            values and tensors: code in it is refused, never run.
    """
    try:
        check_archive(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (ValueError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]  # what follows of torch's is how to run it anyway
        raise ValueError(
            "state: is damaged, or holds more than plain values and tensors, and is not read; "
            f"bring it back from a copy ({reason})"
        ) from error


def folder_of(step: int) -> str:
    """Return the name of the folder of the checkpoint after ``step`` steps."""
    return f"step-{step:08d}"


def write_part(
    store: Store,
    state: dict[str, Any],
    *,
    step: int,
    rank: int = 0,
    holds: dict[str, int] | None = None,
) -> Part:
    """Write the part of one rank; it counts once :func:`commit` has named it.

    Raises:
        Damaged: it is not what is read of it afterwards.
    """
    data = encode(state)
    name = f"part-{rank:05d}.pt"
    _write(store, f"{folder_of(step)}/{name}", data)
    return Part(name, len(data), hashlib.sha256(data).hexdigest(), holds or {})


def commit(store: Store, parts: list[Part], *, step: int, keep: int = 2) -> None:
    """Make the checkpoint of ``step`` valid, then remove all but the newest ``keep``.

    Args:
        store: the training's folder.
        parts: one for each rank, in order of rank.
        step: optimizer steps done, which is also the data position.
        keep: checkpoints that stay; at least 1.

    Raises:
        Damaged: the manifest is not what is read of it afterwards; no older checkpoint is removed.
    """
    if keep < 1:
        raise ValueError(f"keep: {keep}, must be at least 1")
    record = {"schema": SCHEMA, "step": step, "parts": [asdict(part) for part in parts]}
    _write(store, f"{folder_of(step)}/{_MANIFEST}", json.dumps(record, indent=1).encode())
    older = [name for name in folders(store) if _step_of(name) < step]  # newest first
    for name in older[keep - 1 :]:
        store.remove(f"{name}/{_MANIFEST}")  # first, so that what is left of it does not count
        store.remove(name)


def _write(store: Store, name: str, data: bytes) -> None:
    """Write a file and read it, so that nothing older goes while this one is not there whole."""
    store.write(name, data)
    if store.read(name) != data:
        raise Damaged(f"{name}: is not what was written; see to the disk, then go on")


def folders(store: Store) -> list[str]:
    """Return the names of the folders of checkpoints, newest first; some may not be valid."""
    return sorted(filter(_FOLDER.fullmatch, store.folders()), key=_step_of, reverse=True)


def _step_of(folder: str) -> int:
    return int(folder.removeprefix("step-"))


def uncommitted(store: Store) -> list[str]:
    """Return the folders of checkpoints that a writer began, newest first: it is at work, or died.

    One whose manifest is damaged was valid, and is none of them.
    """
    found = []
    for folder in folders(store):
        try:
            manifest(store, folder)
        except FileNotFoundError:
            found.append(folder)
        except Damaged:
            continue
    return found


def sweep(store: Store, tell: Tell = _logger.warning) -> None:
    """Remove :func:`uncommitted` checkpoints, whose writers must have died; ``tell`` is told."""
    for folder in uncommitted(store):
        store.remove(folder)
        tell(f"checkpoint {folder} was begun by a writer that died; removed")


def manifest(store: Store, folder: str) -> list[Part]:
    """Return what the checkpoint in ``folder`` consists of, by rank.

    Raises:
        FileNotFoundError: it was never committed.
        Damaged: its manifest cannot be read.
    """
    data = store.read(f"{folder}/{_MANIFEST}")
    try:
        parts = [Part(**part) for part in parsed(data)["parts"]]
        for part in parts:
            check_part(part.name, "name of a part")
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder}/{_MANIFEST}: {error}") from error
    if not parts:
        raise Damaged(f"{folder}/{_MANIFEST}: names no parts")
    return parts


def read_part(store: Store, folder: str, part: Part) -> bytes:
    """Return the bytes of a part; raises Damaged if they are not those that were written."""
    try:
        data = store.read(f"{folder}/{part.name}")
    except FileNotFoundError as error:
        raise Damaged(f"{folder}/{part.name}: is not there") from error
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise Damaged(f"{folder}/{part.name}: is not what was written")
    return data


def set_aside(store: Store, folder: str, why: Damaged, tell: Tell = _logger.warning) -> None:
    """Rename a checkpoint that does not verify, so that it is not looked at again.

    One of the same step that was set aside before, by a run that was damaged twice, makes room.
    """
    aside = f"{folder}.corrupt"
    store.remove(aside)
    store.rename(folder, aside)
    tell(f"checkpoint {folder} does not verify ({why}); set aside as {aside}")


def newest(store: Store, tell: Tell = _logger.warning) -> list[bytes] | None:
    """Return the parts, by rank, of the newest checkpoint that verifies, or None.

    A checkpoint without a manifest (a writer was killed) is passed over; one whose parts do not
    have the hashes of its manifest is set aside as ``….corrupt``, and ``tell`` is told so.
    """
    for folder in folders(store):
        try:
            return [read_part(store, folder, part) for part in manifest(store, folder)]
        except FileNotFoundError:
            continue
        except Damaged as error:
            set_aside(store, folder, error, tell)
    return None
