"""Names that become paths: what a config, a manifest or a foreign record may call a file or folder.

A name is one part of a path and stays in the folder that it is looked up in. It may stand in the
URI of an object store, which has a meaning of its own for ``?``, ``#`` and ``%``, and in a command
line without quotes around it.
"""

import contextlib
import re
from collections.abc import Iterable

LONGEST = 200
"""Bytes of a name: a file system allows 255, and a file has a longer name while it is written."""

_FORBIDDEN = "/\\?*:|<>\"'`%#"
_KEPT = ("hung", "lease", "ray", "tracking")  # folders that a run makes for itself
_ENDINGS = (".json", ".jsonl", ".yaml", ".txt", ".md", ".csv", ".parquet", ".png", ".pt")


def check_name(name: str, what: str) -> str:
    """Return ``name`` if a user may give it to a folder of a run, as a label of a comparison.

    Args:
        name: to be checked.
        what: what it is, for the message: ``comparison.rivals``, or the like.

    Raises:
        ValueError: it is no :func:`check_part`, or a run keeps a file or folder of such a name.
    """
    check_part(name, what)
    if name.casefold() in _KEPT or name.casefold().endswith(_ENDINGS):
        raise ValueError(
            f"{what}: {name!r}, is kept for files of the run, as are {', '.join(_KEPT)} and what "
            f"ends in {', '.join(_ENDINGS)}; write {_instead(f'{name}_1')!r}, for example"
        )
    return name


def check_part(name: str, what: str) -> str:
    """Return ``name`` if it is one part of a path; raises ValueError, which says why it is not."""
    problem = _problem(name)
    if problem:
        raise ValueError(
            f"{what}: {name!r}, {problem}; must be a plain name of letters, digits, '_-+=,@()' "
            f"and, within, dots and spaces; write {_instead(str(name))!r}, for example"
        )
    return name


def check_path(name: str, what: str) -> str:
    """Return ``name`` if it is parts joined by ``/``, as ``final/none/seed-0``; else ValueError."""
    for part in name.split("/"):
        try:
            check_part(part, what)
        except ValueError as error:
            raise ValueError(f"{error} (in {name!r})" if part != name else str(error)) from None
    return name


def sound(names: Iterable[str]) -> list[str]:
    """Return, sorted, the names that a run can have made, and none of temporary or hidden files."""
    found = []
    for name in names:
        with contextlib.suppress(ValueError):
            found.append(check_part(name, "name"))
    return sorted(found)


def _problem(name: object) -> str:
    """Return why ``name`` is no part of a path; empty if it is one."""
    if not isinstance(name, str):
        return "is no text"
    if not name:
        return "is empty"
    if name.startswith("."):
        return "begins with a dot"
    if found := [sign for sign in _FORBIDDEN if sign in name]:
        return f"has {' and '.join(found)} in it"
    if not name.isprintable() or name != name.strip():
        return "has signs that do not print, or space around it"
    if len(name.encode()) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return ""


def _instead(name: str) -> str:
    """Return a name near ``name`` that can be taken."""
    parts = re.findall(r"[\w+=,@()-]+", name.encode("ascii", "ignore").decode())
    return "_".join(parts)[: LONGEST // 2] or "other"
