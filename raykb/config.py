"""A run's configuration: YAML and ``--set`` overrides to a dict; the constructor is the schema.

    file ──load──▶ dict ──check──▶ every problem at once ──build──▶ objects

A section is the keyword arguments of a constructor. Where there is a choice, ``name`` picks the
constructor out of a table::

    model: {name: wide_resnet, depth: 40, widen: 2}      build(MODELS, config["model"], classes=10)

YAML 1.1 reads ``1e-3`` as text, ``no`` as false, ``1:30`` as 90 and ``012`` as 10. Such values
are refused where they stand, on the command line as well, with what to write instead.

The section ``smoke:`` holds, nested like the file itself, what is different in a smoke run.
A mapping there is merged into the section of that key; one with a ``name`` replaces it, since
another constructor takes other arguments.
"""

import difflib
import inspect
import json
import math
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import yaml

SMOKE = "smoke"

Constructor: TypeAlias = Callable[..., Any]
Table: TypeAlias = Mapping[str, Constructor] | Constructor


class ConfigError(ValueError):
    """All that is wrong with a configuration.

    Attributes:
        problems: one line each.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        super().__init__("\n  - ".join([f"{source}: {count}", *problems]))
        self.source = source
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, tuple[str, ...]]]:
        return ConfigError, (self.source, self.problems)


# ---------------------------------------------------------------------- reading


def load(path: str | Path, *, overrides: Sequence[str] = (), smoke: bool = False) -> dict[str, Any]:
    """Return the configuration in the YAML file ``path``.

    Args:
        path: the file.
        overrides: ``key.sub=value`` each, as :func:`override` takes them; they win over ``smoke``.
        smoke: apply the file's section ``smoke:``; the section itself is never in the result.

    Raises:
        ConfigError: the file cannot be read, is no plain YAML mapping, holds values that YAML 1.1
            misreads, or overrides name keys that are not there.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from error
    config, wrong = _read(text)
    problems = [f"{path}:{line}: {problem}" for line, problem in wrong]
    if not wrong and not isinstance(config, dict):
        problems = [f"holds {_shown(config)}, must hold a mapping of sections"]
    if problems:
        raise ConfigError(str(path), problems)

    changes = config.pop(SMOKE, None)
    if smoke and not isinstance(changes, dict):
        problems = [f"{SMOKE}: {_shown(changes)}, must be a mapping of what a smoke run changes"]
    elif smoke:
        config = _merged(config, changes, f"{SMOKE}.", problems)
    if problems:
        raise ConfigError(str(path), problems)
    return override(config, overrides, source=str(path))


def override(
    config: Mapping[str, Any], overrides: Sequence[str], *, source: str = "config"
) -> dict[str, Any]:
    """Return ``config`` with values replaced, each given as ``key.sub=value``.

    The value is YAML. It replaces what is at the key, also where that is a whole section:
    ``data={name: cifar10, root: /data}``. Only keys that exist can be set.

    Raises:
        ConfigError: naming every override that cannot be applied.
    """
    problems: list[str] = []
    changed = dict(config)
    for text in overrides:
        place, equals, written = text.partition("=")
        if not equals:
            problems.append(f"--set {text}: no '='; write --set key.sub=value")
        elif not written.strip():
            problems.append(f"--set {text}: no value; write {place}=null, or {place}=\"''\"")
        else:
            value, wrong = _read(written)
            found = [problem for _, problem in wrong] or _replace(changed, place.strip(), value)
            problems += [f"--set {place}: {problem}" for problem in found]
    if problems:
        raise ConfigError(source, problems)
    return changed


def _replace(config: dict[str, Any], place: str, value: Any) -> list[str]:
    """Put ``value`` at the dotted ``place``; mappings on the way are copied, not changed."""
    *sections, last = path = place.split(".")
    for depth, key in enumerate(path):
        above = ".".join(path[:depth])
        if key not in config:
            whole = f"; keys that the file leaves out need the whole section: {above}={{…}}"
            return [_unknown(key, config) + whole * bool(above)]
        if depth < len(sections):
            if not isinstance(config[key], dict):
                return [f"{'.'.join(path[: depth + 1])} is {_shown(config[key])}, no section"]
            config[key] = dict(config[key])
            config = config[key]
    config[last] = value
    return []


def _merged(
    config: Mapping[str, Any], changes: Mapping[str, Any], place: str, problems: list[str]
) -> dict[str, Any]:
    """Return ``config`` with ``changes`` in it; a mapping with a ``name`` replaces."""
    result = dict(config)
    for key, value in changes.items():
        if key not in config:
            problems.append(
                f"{place}{key}: {_unknown(key, config)}; a change needs a key to change"
            )
        elif isinstance(value, dict) and isinstance(config[key], dict) and "name" not in value:
            result[key] = _merged(config[key], value, f"{place}{key}.", problems)
        else:
            result[key] = value
    return result


# ---------------------------------------------------------------------- YAML without its traps

_TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "merge")
_PLAIN = "plain YAML's text, numbers, true, false, null, lists, mappings"
_QUOTE = "or put it in quotes if text is meant"
_TRAPS = {
    r"yes|on": f"YAML reads a truth value; write true, {_QUOTE}",
    r"no|off": f"YAML reads a truth value; write false, {_QUOTE}",
    r"[-+]?\.?(nan|inf|infinity)": f"not a finite number; write null for 'none', {_QUOTE}",
    r"[-+]?[\d_]+(:[0-5]?\d)+(\.[\d_]*)?": f"YAML reads base 60; write it in one unit, {_QUOTE}",
    r"[-+]?0[\d_]+": f"YAML reads octal; write it without leading zeros, {_QUOTE}",
    r"[-+]\.\d+(e[-+]?\d+)?": f"YAML reads text; write a digit before the point, {_QUOTE}",
    r"\d{4}-\d\d?-\d\d?([t\s].*)?": "YAML reads a date; put it in quotes",
}


def _trap(text: str) -> str | None:
    """Return what to write instead of a plain scalar that YAML 1.1 reads as nobody expects."""
    if text == "None":
        return f"YAML reads text; write null, {_QUOTE}"
    if number := re.fullmatch(r"([-+]?\d+|(?=\.\d))(\.\d*)?e([-+]?)(\d+)", text, re.IGNORECASE):
        whole, part, sign, exponent = number.groups()
        remedy = f"write {whole}{part or '.0'}e{sign or '+'}{exponent}, {_QUOTE}"
        return None if part and sign else f"YAML reads text; {remedy}"
    traps = (remedy for trap, remedy in _TRAPS.items() if re.fullmatch(trap, text, re.IGNORECASE))
    return next(traps, None)


def _read(text: str) -> tuple[Any, list[tuple[int, str]]]:
    """Return the value of a YAML text, and the line and text of each of its problems."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        problems = list(_problems(root))
        return (None if problems or root is None else loader.construct_document(root)), problems
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        return None, [(mark.line + 1 if mark else 1, f"no valid YAML: {what}")]
    finally:
        loader.dispose()


def _problems(node: yaml.Node | None, *above: yaml.Node) -> Iterator[tuple[int, str]]:
    """Yield line and text of what is wrong at and below a node."""
    if node is None:
        return
    line = node.start_mark.line + 1
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if plain and (trap := _trap(node.value)):
        yield line, f"{node.value}: {trap}"
    elif node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
        yield line, f"{node.tag.replace('tag:yaml.org,2002:', '!!')}: must be one of {_PLAIN}"
    elif any(node is other for other in above):
        yield line, "an alias to what it stands in; write the value out"
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _problems(child, *above, node)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, child in node.value:
            yield from _key_problems(key, first)
            yield from _problems(child, *above, node)


def _key_problems(key: yaml.Node, first: dict[str, int]) -> Iterator[tuple[int, str]]:
    line = key.start_mark.line + 1
    if problem := next(_problems(key), None):
        yield problem
    elif not key.tag.endswith((":str", ":merge")):
        yield line, f"{key.value!r}: a key must be text; put it in quotes"
    elif key.value in first:
        yield line, f"{key.value}: given twice, first in line {first[key.value]}"
    else:
        first[key.value] = line


# ---------------------------------------------------------------------- the schema


@dataclass(frozen=True)
class Section:
    """The schema of a section whose constructor takes more than the configuration holds.

    Args:
        table: what :func:`build` takes.
        given: names of arguments that the program gives, which the configuration may not.
        optional: the section may be left out.
        judged: whether :func:`check` makes a dataclass to hear what its constructor refuses; else
            the program does, in one message with what it finds itself.
    """

    table: Table
    given: Sequence[str] = ()
    optional: bool = False
    judged: bool = True


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
        config: as :func:`load` returns it.
        schema: for each section, by dotted key, a table or a constructor as :func:`build` takes
            it, a :class:`Section`, or a type as ``int`` or ``str | None`` for a plain value.
            A dataclass is really made, so that what its constructor refuses is reported too.
        source: what the message calls the configuration; the file's name.

    Raises:
        ConfigError: naming every problem of every section.
    """
    problems = list(_check_level(config, schema, ""))
    if problems:
        raise ConfigError(source, problems)


def _check_level(config: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
    below: dict[str, dict[str, Any]] = {}
    for key, entry in schema.items():
        head, dot, rest = key.partition(".")
        if dot:
            below.setdefault(head, {})[rest] = entry
    here = {key: entry for key, entry in schema.items() if "." not in key}

    known = [*here, *below]
    yield from (f"{place}{key}: {_unknown(key, known)}" for key in config if key not in known)
    for key, inner in below.items():
        if isinstance(value := config.get(key), Mapping):
            yield from _check_level(value, inner, f"{place}{key}.")
        else:
            yield f"{place}{key}: {_shown(value)}, must be a mapping of {_listed(inner)}"
    for key, entry in here.items():
        if key in config:
            yield from _check_entry(config[key], entry, f"{place}{key}")
        elif not (isinstance(entry, Section) and entry.optional):
            yield f"{place}{key}: missing"


def _check_entry(value: Any, entry: Any, place: str) -> Iterator[str]:
    if _is_type(entry):
        if _fit(entry, value) is _MISFIT:
            yield f"{place}: {_shown(value)}, must be {_kind(entry)}"
        return
    section = entry if isinstance(entry, Section) else Section(entry)
    if not isinstance(value, Mapping):
        yield f"{place}: {_shown(value)}, must be a mapping"
        return
    constructor, arguments, problems = _bound(section, value, f"{place}.")
    yield from problems
    judged = section.judged and not section.given
    if not problems and judged and is_dataclass(constructor):
        try:
            constructor(**arguments)
        except ValueError as error:
            names = "|".join(map(re.escape, arguments)) or "(?!)"
            for part in re.split(rf"(?:\n\s*-?\s*|;\s+)(?=(?:{names})\b)", str(error)):
                separator = "." if re.match(rf"(?:{names}): ", part) else ": "
                yield f"{place}{separator}{part}"


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _bound(
    section: Section, values: Mapping[str, Any], place: str
) -> tuple[Constructor, dict[str, Any], list[str]]:
    """Return the constructor of a section, its arguments as it wants them, and all problems."""
    table, written = section.table, dict(values)
    if isinstance(table, Mapping):
        if "name" not in written:
            return dict, {}, [f"{place}name: missing; one of {_listed(table)}"]
        if not isinstance(name := written.pop("name"), str) or name not in table:
            return dict, {}, [f"{place}name: {_shown(name)}, {_unknown(str(name), table)}"]
        table = table[name]

    parameters = _parameters(table)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {key: p for key, p in parameters.items() if p.kind in _BY_NAME}
    problems, arguments = [], {}
    for key, value in written.items():
        kind = named[key].annotation if key in named else Any
        arguments[key] = _fit(kind, value)
        if key in section.given:
            problems.append(f"{place}{key}: given by the program; leave it out")
        elif key not in named and not open_ended:
            problems.append(f"{place}{key}: {_unknown(key, named.keys() - set(section.given))}")
        elif arguments[key] is _MISFIT:
            problems.append(f"{place}{key}: {_shown(value)}, must be {_kind(kind)}")
    problems += [
        f"{place}{key}: missing; {_kind(p.annotation)}"
        for key, p in named.items()
        if p.default is p.empty and key not in written and key not in section.given
    ]
    return table, arguments, problems


def _parameters(constructor: Constructor) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(constructor, eval_str=True).parameters
    except NameError:  # an annotation that only a type checker can read
        return inspect.signature(constructor).parameters


# ---------------------------------------------------------------------- values and annotations

_MISFIT = object()


def _is_type(entry: Any) -> bool:
    plain = isinstance(entry, type) and entry.__module__ == "builtins"
    return plain or entry in (Any, None, Path) or get_origin(entry) is not None


def _fit(kind: Any, value: Any) -> Any:
    """Return ``value`` as the annotation ``kind`` wants it, or ``_MISFIT``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, inspect.Parameter.empty) or isinstance(kind, str | TypeVar):
        return value
    if origin is Annotated:
        return _fit(arguments[0], value)
    if origin in (Union, types.UnionType):
        fits = [fit for arm in arguments if (fit := _fit(arm, value)) is not _MISFIT]
        return next((fit for fit in fits if fit is value), fits[0] if fits else _MISFIT)
    if origin is Literal:
        return value if (type(value), value) in [(type(a), a) for a in arguments] else _MISFIT
    if kind in (None, types.NoneType):
        return value if value is None else _MISFIT
    if kind in (int, float) and isinstance(value, bool):
        return _MISFIT
    if kind is float:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else _MISFIT
    if kind is Path:
        return Path(value) if isinstance(value, str) else _MISFIT
    plain = origin or kind
    if not isinstance(plain, type):
        return _MISFIT
    if issubclass(plain, Mapping):
        return _fit_mapping(arguments or (Any, Any), value)
    if plain is tuple or (issubclass(plain, Iterable) and issubclass(list, plain)):
        return _fit_items(plain, arguments, value)
    return value if isinstance(value, plain) else _MISFIT


def _fit_mapping(kinds: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _MISFIT
    pairs = [(_fit(kinds[0], key), _fit(kinds[1], item)) for key, item in value.items()]
    return _MISFIT if any(_MISFIT in pair for pair in pairs) else dict(pairs)


def _fit_items(plain: type, kinds: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return _MISFIT
    if plain is not tuple or kinds[1:] == (...,) or not kinds:
        kinds = (kinds[0] if kinds else Any,) * len(value)
    if len(kinds) != len(value):
        return _MISFIT
    items = [_fit(kind, item) for kind, item in zip(kinds, value, strict=True)]
    if any(item is _MISFIT for item in items):
        return _MISFIT
    return tuple(items) if plain is tuple else items


def _kind(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "a value"
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", inspect.formatannotation(annotation))
    return re.sub(r"Literal\[([^\]]*)\]", r"one of \1", text)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _unknown(key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown (did you mean {near[0]!r}?)" if near else f"unknown; known: {_listed(known)}"


# ---------------------------------------------------------------------- writing


def flatten(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Return the values by dotted key as text: plain text as it is, all else as JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def dump(config: Mapping[str, Any]) -> str:
    """Return YAML that :func:`load` reads back as the same values."""
    return yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes where it would look like a trap, and repeats instead of aliasing."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, style='"' if _trap(text) else None
        )


_Dumper.add_representer(str, _Dumper.represent_text)


def diff(
    old: Mapping[str, Any], new: Mapping[str, Any], *, leaving_out: Iterable[str] = ()
) -> list[str]:
    """Return how two configurations differ, as ``search.width: 40 -> 80``, by key.

    Args:
        old: one configuration.
        new: the other.
        leaving_out: sections, or dotted keys, that are not looked at.
    """
    before, after = flatten(old), flatten(new)
    passed = tuple(f"{key}." for key in leaving_out)
    return [
        f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not f"{key}.".startswith(passed)
    ]
