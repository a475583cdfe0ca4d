"""From what a file says to a whole configuration: each constructor's defaults filled in."""

from collections.abc import Mapping
from inspect import Parameter
from typing import Any, NamedTuple

from raykb.config.schema import (
    Group,
    Renamed,
    Section,
    Value,
    levels,
    row_entries,
    sections,
)
from raykb.config.values import MISFIT, by_name, is_type, plain_default, plainly

_ABSENT = object()


class _Whole(NamedTuple):
    """What is completed: all of the configuration and of its schema."""

    config: Mapping[str, Any]
    schema: Mapping[str, Any]
    every: bool  # whether keys without a default are there, too


def complete(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with all defaults in it, in the order of schema and signatures.

    Equal configurations are equal values then: a float is one wherever it may be one, as ``1.0``.
    Sections that are left out are filled in where their constructor needs nothing. What is wrong,
    unknown or missing stays so, for :func:`raykb.config.check` to say; what the program gives is
    never filled in, nor are defaults that YAML has no form for (see :func:`unwritable`).

    Args:
        config: what is written.
        schema: as :func:`raykb.config.check` takes it.
    """
    return _level(config, schema, _Whole(config, schema, every=False))


def outline(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with every key that can be set, null where there is no default."""
    return _level(config, schema, _Whole(config, schema, every=True))


def unwritable(schema: Mapping[str, Any]) -> list[str]:
    """Return the arguments, as ``section.name.argument``, whose default YAML cannot say.

    A whole configuration does not hold them, so none of them may decide a run.
    """
    found = []
    for key, entry in sections(schema).items():
        table = entry.table if isinstance(entry.table, Mapping) else {"": entry.table}
        for name, constructor in table.items():
            found += [
                ".".join(filter(None, [key, name, argument]))
                for argument, parameter in by_name(constructor).items()
                if argument not in entry.given
                and parameter.default is not Parameter.empty
                and plain_default(constructor, parameter) is MISFIT
            ]
    return found


def _level(config: Mapping[str, Any], level: Mapping[str, Any], whole: _Whole) -> dict[str, Any]:
    found = {
        key: _entry(config.get(key, _ABSENT), entry, whole) for key, entry in levels(level).items()
    }
    return {key: value for key, value in found.items() if value is not _ABSENT} | {
        key: value for key, value in config.items() if key not in found
    }


def _entry(value: Any, entry: Any, whole: _Whole) -> Any:
    """Return what an entry makes of a value, which may be absent and remain so."""
    if isinstance(entry, Renamed):
        return value
    if isinstance(entry, Value):
        return plainly(entry.kind, entry.default if value is _ABSENT else value)
    if isinstance(entry, Group):
        written = {} if value is _ABSENT else value
        if not isinstance(written, Mapping):
            return value
        return _level(written, entry.schema, whole) or value
    if is_type(entry):
        absent = None if whole.every else _ABSENT
        return absent if value is _ABSENT else plainly(entry, value)
    if value is _ABSENT:
        fills = whole.every or not (entry.optional or _needs_something(entry, whole))
        return _section({}, entry, whole) if fills else value
    return _section(value, entry, whole) if isinstance(value, Mapping) else value


def _needs_something(section: Section, whole: _Whole) -> bool:
    constructor = section.constructor(section.default)
    had = {*section.given, *section.derived(whole.config)}
    return constructor is None or any(
        parameter.default is Parameter.empty
        for key, parameter in by_name(constructor).items()
        if key not in had
    )


def _section(values: Mapping[str, Any], section: Section, whole: _Whole) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(section.table, Mapping):
        name = values.get("name", section.default)
        found = {"name": name} if name is not None or whole.every else {}
    if (constructor := section.constructor(found.get("name"))) is not None:
        meant = {**section.derived(whole.config), **values}
        for key, parameter in by_name(constructor).items():
            if key in meant:
                found[key] = plainly(parameter.annotation, meant[key])
            elif key not in section.given and key not in found:
                value = plain_default(constructor, parameter)
                if value is not MISFIT or whole.every:
                    found[key] = None if value is MISFIT else value
    found |= {key: value for key, value in values.items() if key not in found}
    return found | _rows(found, section, whole)


def _rows(values: Mapping[str, Any], section: Section, whole: _Whole) -> dict[str, dict[str, Any]]:
    """Return the arguments that hold labelled rows, each row completed."""
    entries, filled = row_entries(whole.schema), whole._replace(every=False)
    return {
        argument: {label: _entry(row, entries[over], filled) for label, row in rows.items()}
        for argument, key in section.rows.items()
        if isinstance(over := values.get(key, key), str)
        and over in entries
        and isinstance(rows := values.get(argument), Mapping)
    }
