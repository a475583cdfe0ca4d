"""Arrays in a run directory that are costly to make and are named by what they were made of."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raykb.engine.foreign import check_archive
from raykb.runtime.storage import open_storage


@dataclass(frozen=True)
class ArrayFiles:
    """Keeps arrays as ``<key>.npz`` in a folder, for whoever needs them again.

    Attributes:
        uri: of the folder.
    """

    uri: str

    def read(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of this key; None where there is no file, or it is broken."""
        try:
            data = open_storage(self.uri).read(f"{key}.npz")
            check_archive(data)
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return dict(arrays)
        except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile):
            return None

    def write(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays."""
        file = io.BytesIO()
        own: dict[str, Any] = dict(arrays)
        np.savez(file, **own)
        open_storage(self.uri).write(f"{key}.npz", file.getvalue())
