"""Checkpoints that are whole or do not count: parts by rank, made valid by a manifest.

The folder of a training holds one folder per checkpoint:

    step-00000400/part-00000.pt     the state of rank 0            [1]
    step-00000400/part-00001.pt     the state of rank 1            [1]
    step-00000400/manifest.json     names, sizes and hashes        [2]

Every rank writes its part [1], with its random state and data position inside; when all are
durable, rank 0 writes the manifest [2]. A reader takes the newest checkpoint whose manifest is
there and whose parts have the hashes that it names; anything else is as if it did not exist.
"""

import hashlib
import io
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

SCHEMA = 1
_MANIFEST = "manifest.json"

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


@dataclass(frozen=True)
class Part:
    """What the manifest says of one rank's file."""

    name: str
    bytes: int
    sha256: str


def encode(state: Any) -> bytes:
    """Return ``state`` (plain values and tensors) as bytes that :func:`decode` reads."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def decode(data: bytes) -> Any:
    """Return the state in ``data``, on the CPU; code inside it is refused, never run."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _folder(step: int) -> str:
    return f"step-{step:08d}"


def write_part(store: Store, state: dict[str, Any], *, step: int, rank: int = 0) -> Part:
    """Write the part of one rank; it counts once :func:`commit` has named it."""
    data = encode(state)
    name = f"part-{rank:05d}.pt"
    store.write(f"{_folder(step)}/{name}", data)
    return Part(name, len(data), hashlib.sha256(data).hexdigest())


def commit(store: Store, parts: list[Part], *, step: int, keep: int = 2) -> None:
    """Make the checkpoint of ``step`` valid, then remove all but the newest ``keep``.

    Args:
        store: the training's folder.
        parts: one for each rank, in order of rank.
        step: optimizer steps done, which is also the data position.
        keep: checkpoints that stay; at least 1.
    """
    if keep < 1:
        raise ValueError(f"keep: {keep}, must be at least 1")
    manifest = {"schema": SCHEMA, "step": step, "parts": [asdict(part) for part in parts]}
    store.write(f"{_folder(step)}/{_MANIFEST}", json.dumps(manifest, indent=1).encode())
    older = [name for name in store.folders() if name.startswith("step-") and name < _folder(step)]
    for name in older[: max(0, len(older) - (keep - 1))]:
        store.remove(name)


def newest(store: Store) -> list[bytes] | None:
    """Return the parts, by rank, of the newest checkpoint that verifies, or None.

    A checkpoint without a manifest (a writer was killed) is passed over; one whose parts do not
    have the hashes of its manifest is set aside as ``….corrupt`` with a warning.
    """
    for folder in reversed(store.folders()):
        if not folder.startswith("step-") or folder.endswith(".corrupt"):
            continue
        try:
            manifest = store.read(f"{folder}/{_MANIFEST}")
        except FileNotFoundError:
            continue
        parts = _verified(store, folder, manifest)
        if parts is not None:
            return parts
        _logger.warning("checkpoint %s does not verify; set aside as %s.corrupt", folder, folder)
        store.rename(folder, f"{folder}.corrupt")
    return None


def _verified(store: Store, folder: str, manifest: bytes) -> list[bytes] | None:
    """Return all parts if each has the hash that the manifest names, else None."""
    try:
        named = [Part(**part) for part in json.loads(manifest)["parts"]]
        parts = [store.read(f"{folder}/{part.name}") for part in named]
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return None
    hashes = [hashlib.sha256(part).hexdigest() for part in parts]
    return parts if parts and hashes == [part.sha256 for part in named] else None
