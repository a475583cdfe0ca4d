"""Frozen dataclasses as canonical JSON: equal ones give equal text and equal hashes.

A document is made of numbers, texts, truths, tuples and other dataclasses, as its annotations say.
What is read is held against these, so that a file of another make or age is refused whole.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from raykb.engine.foreign import parsed

_Document = TypeVar("_Document", bound="Document")


@dataclass(frozen=True)
class Document:
    """What can be written as JSON, and read back as what it was.

    Attributes:
        FORMAT: what a file says that it is.
        VERSION: of its schema.
    """

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int]

    def to_json(self) -> str:
        """Return the document in one line, every float exact and all keys in order."""
        head = {"format": self.FORMAT, "version": self.VERSION}
        content = head | asdict(self)
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the JSON, the same in any version of Python."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls: type[_Document], text: str) -> _Document:
        """Return the document that :meth:`to_json` wrote.

        Raises:
            ValueError: not JSON, another format or version, or not what the annotations say.
        """
        remedy = f"must be what {cls.__name__}.to_json() writes"
        try:
            content = parsed(text)
        except ValueError as error:
            raise ValueError(f"{cls.FORMAT}: not JSON ({error}); {remedy}") from error
        given = content.pop("format", None) if isinstance(content, dict) else type(content).__name__
        if given != cls.FORMAT:
            raise ValueError(f"format: {given!r}, must be {cls.FORMAT!r}; {remedy}")
        if (version := content.pop("version", None)) != cls.VERSION:
            raise ValueError(
                f"version: {version!r} of {cls.FORMAT}, must be {cls.VERSION}; make it anew"
            )
        document: _Document = typed(cls, content, cls.FORMAT)
        return document


def typed(kind: Any, value: Any, place: str) -> Any:
    """Return what JSON has as a value of the type ``kind``.

    Args:
        kind: an annotation of a document.
        value: lists, dicts and plain values.
        place: where it stands, for messages.

    Raises:
        ValueError: it is none; place, value and what it must be are named.
    """
    options = get_args(kind)
    if is_dataclass(kind):
        return _document(kind, value, place)
    if get_origin(kind) is tuple:
        return _tuple(options, value, place)
    if get_origin(kind) is Literal:
        if value in options:
            return value
        raise ValueError(f"{place}: {value!r}, must be {' or '.join(map(repr, options))}")
    if options:  # one of several types, of which one is None
        first = next(option for option in options if option is not type(None))
        return None if value is None else typed(first, value, place)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # a truth is an int to isinstance
        raise ValueError(f"{place}: {value!r}, must be of type {kind.__name__}")
    return value


def _document(kind: Any, value: Any, place: str) -> Any:
    names = [field.name for field in fields(kind)]
    if not isinstance(value, dict) or value.keys() != set(names):
        given = sorted(value) if isinstance(value, dict) else value
        raise ValueError(f"{place}: {given!r}, must have the keys {sorted(names)} and no others")
    hints = get_type_hints(kind)
    return kind(**{name: typed(hints[name], value[name], f"{place}.{name}") for name in names})


def _tuple(kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{place}: {value!r}, must be a list")
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise ValueError(f"{place}: {value!r}, must be a list of {len(kinds)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(typed(kind, item, f"{place}[{number}]") for number, (kind, item) in pairs)
