"""From a configuration to objects, or to all that is wrong with it."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from raykb.config.completion import complete
from raykb.config.problems import ConfigError, listed, shown, told_at, unknown
from raykb.config.schema import Group, Renamed, Section, Table, Value, levels, row_entries
from raykb.config.values import (
    MISFIT,
    Constructor,
    by_name,
    fit,
    kind_text,
    parameters,
)


def build(table: Table, section: Mapping[str, Any], /, **given: Any) -> Any:
    """Return what a section describes.

    Args:
        table: constructors by name, of which the section's ``name`` picks one; or a constructor.
        section: ``name`` and keyword arguments; for a constructor the keyword arguments.
        given: keyword arguments that the program gives.

    Raises:
        ConfigError: an unknown name, unknown or missing arguments, or values of a wrong type.
    """
    constructor, arguments, problems = _bound(Section(table, tuple(given)), section, "")
    if problems:
        raise ConfigError(str(section.get("name", getattr(table, "__name__", table))), problems)
    return constructor(**arguments, **given)


def check(config: Mapping[str, Any], schema: Mapping[str, Any], *, source: str = "config") -> None:
    """Check all sections of a configuration before anything is started.

    Args:
        config: as :func:`load` returns it; what it leaves out counts as :func:`complete` gives it.
        schema: for each section, by dotted key, a table or a constructor as :func:`build` takes
            it, a :class:`Section`, a type as ``int`` or ``str | None`` for a plain value, a
            :class:`Value` or a :class:`Renamed`.
            A dataclass is really made, so that what its constructor refuses is reported too.
        source: what the message calls the configuration; the file's name.

    Raises:
        ConfigError: naming every problem of every section.
    """
    problems = list(_check_level(complete(config, schema), schema, schema, ""))
    if problems:
        raise ConfigError(source, problems)


def _check_level(
    config: Mapping[str, Any], level: Mapping[str, Any], schema: Mapping[str, Any], place: str
) -> Iterator[str]:
    entries = levels(level)
    known = [key for key, entry in entries.items() if not isinstance(entry, Renamed)]
    for key in config:
        if key not in entries:
            yield f"{place}{key}: {unknown(key, known)}"
        elif isinstance(entry := entries[key], Renamed):
            yield f"{place}{key}: is called {entry.key} now"
    for key in known:
        entry, here = entries[key], f"{place}{key}"
        if isinstance(entry, Group):
            if isinstance(value := config.get(key), Mapping):
                yield from _check_level(value, entry.schema, schema, f"{here}.")
            else:
                yield f"{here}: {shown(value)}, must be a mapping of {listed(levels(entry.schema))}"
        elif key in config:
            yield from _check_entry(config[key], entry, schema, here)
        elif not (isinstance(entry, Section) and entry.optional):
            yield f"{here}: missing"


def _check_entry(value: Any, entry: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    if not isinstance(entry, Section):
        kind = entry.kind if isinstance(entry, Value) else entry
        if fit(kind, value) is MISFIT:
            yield f"{place}: {shown(value)}, must be {kind_text(kind)}"
        return
    if not isinstance(value, Mapping):
        yield f"{place}: {shown(value)}, must be a mapping"
        return
    constructor, arguments, problems = _bound(entry, value, f"{place}.")
    yield from problems
    judged = entry.judged and not entry.given
    if not problems and judged and is_dataclass(constructor):
        try:
            constructor(**arguments)
        except ValueError as error:
            yield from told_at(place, str(error), arguments)
    for argument, key in entry.rows.items():
        over, rows = arguments.get(key, key), arguments.get(argument)
        if isinstance(over, str) and isinstance(rows, Mapping):
            yield from _check_rows(rows, over, schema, f"{place}.{argument}", f"{place}.{key}")


def _check_rows(
    rows: Mapping[str, Any], over: str, schema: Mapping[str, Any], place: str, named_by: str
) -> Iterator[str]:
    """Check labelled rows, of which each is a section like the one that ``over`` names."""
    entries = row_entries(schema)
    if over not in entries:
        yield f"{named_by}: {shown(over)}, {unknown(over, entries)}"
        return
    for label, row in rows.items():
        where = f"{place}.{label}"
        for problem in _check_entry(row, entries[over], schema, where):
            of_another = problem.startswith(f"{where}.name: ") and "name" in row
            yield problem + f"; {named_by} is {over}, so it is a section like {over}" * of_another


def _bound(
    section: Section, values: Mapping[str, Any], place: str
) -> tuple[Constructor, dict[str, Any], list[str]]:
    """Return the constructor of a section, its arguments as it wants them, and all problems."""
    written = dict(values)
    name = written.pop("name", section.default) if isinstance(section.table, Mapping) else None
    constructor = section.constructor(name)
    if constructor is None:
        return dict, {}, [f"{place}name: {_no_name(values, section)}"]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters(constructor).values())
    named = by_name(constructor)
    problems, arguments = [], {}
    for key, value in written.items():
        kind = named[key].annotation if key in named else Any
        arguments[key] = fit(kind, value)
        if key in section.given:
            problems.append(f"{place}{key}: given by the program; leave it out")
        elif key not in named and not open_ended:
            problems.append(f"{place}{key}: {_no_argument(key, section, named, name, place)}")
        elif arguments[key] is MISFIT:
            problems.append(f"{place}{key}: {shown(value)}, must be {kind_text(kind)}")
    problems += [
        f"{place}{key}: missing; {kind_text(p.annotation)}"
        for key, p in named.items()
        if p.default is p.empty and key not in written and key not in section.given
    ]
    return constructor, arguments, problems


def _no_name(values: Mapping[str, Any], section: Section) -> str:
    """Say that no constructor has the name that a section gives, if it gives one."""
    table = section.table if isinstance(section.table, Mapping) else {}
    if "name" not in values:
        return f"missing; one of {listed(table)}"
    return f"{shown(values['name'])}, {unknown(str(values['name']), table)}"


def _no_argument(
    key: str, section: Section, named: Mapping[str, Any], name: Any, place: str
) -> str:
    """Say that a constructor has no such argument, and what may have been meant."""
    if key in section.renamed:
        return f"is called {section.new_key(key, place)} now"
    known = named.keys() - set(section.given)
    table = section.table if isinstance(section.table, Mapping) else {}
    others = sorted(other for other, own in table.items() if key in by_name(own))
    if not others or key in section.given:
        return unknown(key, known)
    whole = f"{place.rstrip('.')}={{name: {name}, …}}".lstrip("=")
    owners = f"it is an argument of {' and '.join(others)}"
    remedy = f"for another name give the whole section, {whole}"
    return f"unknown; known: {listed(known)}; {owners}: {remedy}"
