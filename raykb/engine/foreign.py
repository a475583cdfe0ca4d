"""What others wrote, read within bounds: no more of it than a file of its kind has, and no deeper.

Files of data sets, policies and genotypes come from anywhere. What reads them says what they may
be, and refuses the rest by a ValueError before it takes memory or time.
"""

import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_BYTES = 64 * 2**20
"""Of a text that is read whole: a list of a million files has less."""

MOST_INFLATED = 1032
"""Bytes that one of a gzipped file can become, by the format of deflate."""

DEEPEST = 32
"""Levels of lists and mappings that a JSON text may have."""

_STEERING = {
    code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))
}  # C0 but for tab and new line, DEL, C1
_TURNING = (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_STEERING |= {code: f"\\u{code:04x}" for code in _TURNING}  # which way a line is written


def printable(text: str) -> str:
    """Return a text that steers no terminal: control characters in it are written out."""
    return text.translate(_STEERING)


def read_text(path: Path, *, most_bytes: int = MOST_BYTES, encoding: str = "utf-8") -> str:
    """Return the text of a plain file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no plain file, has more than ``most_bytes``, or is no such text.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is no plain file; name one")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"{path}: has more than {most_bytes} bytes, which no file of its kind has")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text: {error}") from error


def check_archive(data: bytes) -> None:
    """Refuse a zip archive that is larger than it has bytes; those of ours compress nothing.

    Raises:
        ValueError: it is, or it is no archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"is no archive: {error}") from error
    if unpacked > len(data):
        raise ValueError(f"is an archive of {len(data)} bytes that would be {unpacked}")


def parsed(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none, or has more than :data:`DEEPEST` levels.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"has more than {DEEPEST} levels of lists and mappings") from None
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        level = [each for parent in level for each in _below(parent)]
        if not level:
            return value
    raise ValueError(f"has more than {DEEPEST} levels of lists and mappings")


def _below(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
