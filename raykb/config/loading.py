"""From a file, its smoke section and ``--set`` to a whole configuration.

What is changed is looked up in the whole configuration and written into what the file says:

    file ──▶ sparse ──smoke──▶ sparse ──set──▶ … ──▶ sparse ──complete──▶ whole
              keys ▲ of the outline ▲ of what is there then ▲

So another ``name`` drops the defaults of the constructor before, and brings its own.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raykb.config.completion import complete, outline
from raykb.config.problems import ConfigError, shown, unknown
from raykb.config.reading import read
from raykb.config.schema import renamings, row_places, section_places

SMOKE = "smoke"
MOST_BYTES = 2**20  # of a file, which a person has written


def load(
    path: str | Path,
    schema: Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    smoke: bool = False,
) -> dict[str, Any]:
    """Return the whole configuration of the YAML file ``path``.

    Args:
        path: the file.
        schema: as :func:`raykb.config.check` takes it.
        overrides: ``key.sub=value`` each, as :func:`override` takes them; they win over ``smoke``.
        smoke: apply the file's section ``smoke:``; the section itself is never in the result.

    Raises:
        ConfigError: the file cannot be read, is no plain YAML mapping, holds values that YAML 1.1
            misreads, or smoke section or overrides name keys that are not there.
    """
    try:
        text = _text(Path(path))
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from error
    config, wrong = read(text)
    problems = [f"{path}:{line}: {problem}" for line, problem in wrong]
    if not wrong and not isinstance(config, dict):
        problems = [f"holds {shown(config)}, must hold a mapping of sections"]
    if problems:
        raise ConfigError(str(path), problems)

    changes = config.pop(SMOKE, None)
    if smoke and not isinstance(changes, dict):
        problems = [f"{SMOKE}: {shown(changes)}, must be a mapping of what a smoke run changes"]
    elif smoke:
        problems = _apply(config, changes, schema)
    if problems:
        raise ConfigError(str(path), problems)
    return override(config, schema, overrides, source=str(path))


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"has {size} bytes, must have at most {MOST_BYTES}")
    return path.read_text(encoding="utf-8")


def override(
    config: Mapping[str, Any],
    schema: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str = "config",
) -> dict[str, Any]:
    """Return ``config`` whole, with values replaced, each given as ``key.sub=value``.

    The value is YAML. It replaces what is at the key, also where that is a whole section:
    ``data={name: cifar10, root: /data}``. Any argument of a section's constructor can be set,
    and rows can be added to labelled ones; another ``name`` keeps what ``config`` itself says, and
    brings its own defaults for the rest.

    Args:
        config: what is written; of a run's stored configuration that is all of it.
        schema: as :func:`raykb.config.check` takes it.
        overrides: are applied in turn.
        source: what the message calls the configuration; the file's name.

    Raises:
        ConfigError: naming every override that cannot be applied.
    """
    problems: list[str] = []
    changed = dict(config)
    for text in overrides:
        place, equals, written = text.partition("=")
        place = place.strip()
        if not equals:
            problems.append(f"--set {text}: no '='; write --set key.sub=value")
        elif not written.strip():
            problems.append(f"--set {text}: no value; write {place}=null, or {place}=\"''\"")
        else:
            value, wrong = read(written)
            found = [problem for _, problem in wrong]
            if not found:
                found = _put(changed, outline(changed, schema), schema, place.split("."), value)
            problems += [f"--set {place}: {problem}" for problem in found]
    if problems:
        raise ConfigError(source, problems)
    return complete(changed, schema)


def _apply(
    config: dict[str, Any], changes: Mapping[str, Any], schema: Mapping[str, Any]
) -> list[str]:
    """Put what a smoke run changes into ``config``; return what cannot be."""
    whole, rows = outline(config, schema), row_places(schema)
    return [
        f"{SMOKE}.{'.'.join(path)}: {problem}"
        for path, value in _leaves(changes, whole, rows)
        for problem in _put(config, whole, schema, path, value)
    ]


def _leaves(
    changes: Mapping[str, Any], whole: Mapping[str, Any], rows: Collection[str], *above: str
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield path and value of each change: what is no mapping that is merged into another."""
    for key, value in changes.items():
        path, old = (*above, key), whole.get(key)
        merges = isinstance(value, dict) and "name" not in value and ".".join(path) not in rows
        if merges and isinstance(old, dict):
            yield from _leaves(value, old, rows, *path)
        else:
            yield path, value


def _put(
    config: dict[str, Any],
    whole: Mapping[str, Any],
    schema: Mapping[str, Any],
    path: Sequence[str],
    value: Any,
) -> list[str]:
    """Put ``value`` at ``path``; mappings on the way are made or copied, not changed.

    Args:
        config: what is written.
        whole: its outline, which has the keys that there can be.
        schema: says which mappings are sections, that may be made with one key alone; another
            mapping, as an argument's value, is taken over from ``whole``.
        path: the parts of a dotted key.
        value: what is put there.

    Returns:
        What is wrong, if it cannot be.
    """
    *most, last = path
    for depth, key in enumerate(path):
        here, above = ".".join(path[: depth + 1]), ".".join(path[:depth])
        new_row = depth == len(most) and above in row_places(schema)
        if key not in whole and not new_row:
            new = renamings(schema).get(here)
            return [f"is called {new} now" if new else unknown(key, whole)]
        if depth < len(most):
            if not isinstance(whole[key], dict):
                return [f"{here} is {shown(whole[key])}, no section"]
            made = {} if here in section_places(schema) else whole[key]
            config[key] = dict(config.get(key, made))
            config, whole = config[key], whole[key]
    config[last] = value
    return []
