"""From what a file says to a whole configuration: each constructor's defaults filled in."""

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

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
    return _level(config, schema, schema, every=False)


def outline(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with every key that can be set, null where there is no default."""
    return _level(config, schema, schema, every=True)


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


def _level(
    config: Mapping[str, Any], level: Mapping[str, Any], schema: Mapping[str, Any], *, every: bool
) -> dict[str, Any]:
    whole = {
        key: _entry(config.get(key, _ABSENT), entry, schema, every=every)
        for key, entry in levels(level).items()
    }
    return {key: value for key, value in whole.items() if value is not _ABSENT} | {
        key: value for key, value in config.items() if key not in whole
    }


def _entry(value: Any, entry: Any, schema: Mapping[str, Any], *, every: bool) -> Any:
    """Return what an entry makes of a value, which may be absent and remain so."""
    if isinstance(entry, Renamed):
        return value
    if isinstance(entry, Value):
        return plainly(entry.kind, entry.default if value is _ABSENT else value)
    if isinstance(entry, Group):
        written = {} if value is _ABSENT else value
        if not isinstance(written, Mapping):
            return value
        return _level(written, entry.schema, schema, every=every) or value
    if is_type(entry):
        absent = None if every else _ABSENT
        return absent if value is _ABSENT else plainly(entry, value)
    if value is _ABSENT:
        fills = every or not (entry.optional or _needs_something(entry))
        return _section({}, entry, schema, every=every) if fills else value
    return _section(value, entry, schema, every=every) if isinstance(value, Mapping) else value


def _needs_something(section: Section) -> bool:
    constructor = section.constructor(section.default)
    return constructor is None or any(
        parameter.default is Parameter.empty
        for key, parameter in by_name(constructor).items()
        if key not in section.given
    )


def _section(
    values: Mapping[str, Any], section: Section, schema: Mapping[str, Any], *, every: bool
) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    if isinstance(section.table, Mapping):
        name = values.get("name", section.default)
        whole = {"name": name} if name is not None or every else {}
    if (constructor := section.constructor(whole.get("name"))) is not None:
        for key, parameter in by_name(constructor).items():
            if key in values:
                whole[key] = plainly(parameter.annotation, values[key])
            elif key not in section.given and key not in whole:
                value = plain_default(constructor, parameter)
                if value is not MISFIT or every:
                    whole[key] = None if value is MISFIT else value
    whole |= {key: value for key, value in values.items() if key not in whole}
    return whole | _rows(whole, section, schema)


def _rows(
    whole: Mapping[str, Any], section: Section, schema: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the arguments that hold labelled rows, each row completed."""
    entries = row_entries(schema)
    return {
        argument: {
            label: _entry(row, entries[over], schema, every=False) for label, row in rows.items()
        }
        for argument, key in section.rows.items()
        if isinstance(over := whole.get(key, key), str)
        and over in entries
        and isinstance(rows := whole.get(argument), Mapping)
    }
