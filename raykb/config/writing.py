"""A configuration as text: YAML, parameters of a tracker, and how it differs from another."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from raykb.config.reading import trap


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
            "tag:yaml.org,2002:str", text, style='"' if trap(text) else None
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
