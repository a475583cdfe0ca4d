"""What a script says of its configuration: for each section, by dotted key, an entry.

An entry is a table of constructors or a constructor, a :class:`Section` where there is more to say
of it, a type as ``int`` or ``str | None`` for a plain value, a :class:`Value` where that has a
default, or a :class:`Renamed` for what had another name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from raykb.config.values import Constructor, is_type

Table: TypeAlias = Mapping[str, Constructor] | Constructor


def _nothing(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Section:
    """The schema of a section of which there is more to say than its constructor.

    Args:
        table: constructors by name, of which the section's ``name`` picks one; or a constructor.
        given: names of arguments that the program gives, which the configuration may not.
        optional: the section may be left out, and then is not filled in.
        judged: whether :func:`check` makes a dataclass to hear what its constructor refuses; else
            the program does, in one message with what it finds itself.
        default: the ``name`` that is meant where none is given.
        renamed: arguments that had another name, as ``{"old": "new"}``; a new name with a dot is
            the whole key of something that stands elsewhere now.
        rows: arguments that hold sections again, by label, each with their kind, or the argument
            that says it: ``{"models": "model"}``, or ``{"rivals": "over"}`` where ``over: method``
            makes each of the ``rivals`` a whole section like ``method``.
        derived: returns, from what a configuration says elsewhere, arguments that are meant where
            none are given, before the constructor's defaults; what it reads may be wrong yet.
    """

    table: Table
    given: Sequence[str] = ()
    optional: bool = False
    judged: bool = True
    default: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _nothing

    def constructor(self, name: Any) -> Constructor | None:
        """Return the constructor of this name, or the only one; None if there is none."""
        if not isinstance(self.table, Mapping):
            return self.table
        return self.table.get(name) if isinstance(name, str) else None

    def new_key(self, old: str, place: str) -> str:
        """Return the whole new key of a renamed argument of the section at ``place``."""
        new = self.renamed[old]
        return new if "." in new else f"{place}{new}"


@dataclass(frozen=True)
class Value:
    """The schema of a plain value that may be left out: its type, and what it is then."""

    kind: Any
    default: Any


@dataclass(frozen=True)
class Renamed:
    """The schema of a section or value that had another name; ``key`` is what it is called now."""

    key: str


@dataclass(frozen=True)
class Group:
    """Sections with a common beginning of their dotted keys."""

    schema: Mapping[str, Any]


def levels(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries by the first part of their keys; a :class:`Section` for each section."""
    found: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, entry in schema.items():
        head, dot, rest = key.partition(".")
        if dot:
            groups.setdefault(head, {})[rest] = entry
            found[head] = Group(groups[head])
        else:
            found[head] = _settled(entry)
    return found


def _settled(entry: Any) -> Any:
    """Return a table or a constructor as a section, all else as it is."""
    settled = isinstance(entry, Section | Value | Renamed) or is_type(entry)
    return entry if settled else Section(entry)


def sections(schema: Mapping[str, Any]) -> dict[str, Section]:
    """Return the sections by dotted key."""
    settled = {key: _settled(entry) for key, entry in schema.items()}
    return {key: entry for key, entry in settled.items() if isinstance(entry, Section)}


def row_entries(schema: Mapping[str, Any]) -> dict[str, Section]:
    """Return the sections, by dotted key, that labelled rows can be of."""
    return {key: section for key, section in sections(schema).items() if not section.rows}


def row_places(schema: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys of all arguments that hold labelled rows."""
    return {f"{key}.{argument}" for key, own in sections(schema).items() for argument in own.rows}


def section_places(schema: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys of all sections, and of all groups of them."""
    keys = [key.split(".") for key in sections(schema)]
    return {".".join(parts[: depth + 1]) for parts in keys for depth in range(len(parts))}


def renamings(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return the new dotted keys by the old ones."""
    found = {key: entry.key for key, entry in schema.items() if isinstance(entry, Renamed)}
    for key, section in sections(schema).items():
        found |= {f"{key}.{old}": section.new_key(old, f"{key}.") for old in section.renamed}
    return found
