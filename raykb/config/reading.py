"""YAML without its traps: what it misreads, and what would take it forever, is refused."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import yaml

DEEPEST = 32
"""Levels of lists and mappings that a text may have."""

MOST_NODES = 10_000
"""Values that a text may stand for, its aliases written out."""

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


def trap(text: str) -> str | None:
    """Return what to write instead of a plain scalar that YAML 1.1 reads as nobody expects."""
    if text == "None":
        return f"YAML reads text; write null, {_QUOTE}"
    if number := re.fullmatch(r"([-+]?\d+|(?=\.\d))(\.\d*)?e([-+]?)(\d+)", text, re.IGNORECASE):
        whole, part, sign, exponent = number.groups()
        remedy = f"write {whole}{part or '.0'}e{sign or '+'}{exponent}, {_QUOTE}"
        return None if part and sign else f"YAML reads text; {remedy}"
    traps = (remedy for trap, remedy in _TRAPS.items() if re.fullmatch(trap, text, re.IGNORECASE))
    return next(traps, None)


class _Loader(yaml.SafeLoader):
    """Ends where a few bytes would be many values: depth and aliases have their limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._counts: dict[int, int] = {}  # values of the nodes that are done, by identity

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > DEEPEST:
            raise _refusal(event, f"more than {DEEPEST} levels of lists and mappings")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._counts:  # it is not done
                raise _refusal(event, "an alias to what it stands in; write the value out")
        elif node is not None:
            count = 1 + sum(self._counts[id(child)] for child in _below(node))
            if count > MOST_NODES:
                raise _refusal(event, f"more than {MOST_NODES:,} values, its aliases written out")
            self._counts[id(node)] = count
        return node


def _refusal(event: Any, why: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=event.start_mark)


def _below(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        yield from itertools.chain.from_iterable(node.value)


def read(text: str) -> tuple[Any, list[tuple[int, str]]]:
    """Return the value of a YAML text, and the line and text of each of its problems."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        problems = list(_problems(root))
        return (None if problems or root is None else loader.construct_document(root)), problems
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        return None, [(mark.line + 1 if mark else 1, f"no valid YAML: {what}")]
    except (ValueError, KeyError, IndexError) as error:  # of a tag that the text does not fit
        return None, [(1, f"no valid YAML: {type(error).__name__}: {error}")]


def _problems(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Yield line and text of what is wrong at and below a node."""
    if node is None:
        return
    line = node.start_mark.line + 1
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if plain and (remedy := trap(node.value)):
        yield line, f"{node.value}: {remedy}"
    elif node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
        yield line, f"{node.tag.replace('tag:yaml.org,2002:', '!!')}: must be one of {_PLAIN}"
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _problems(child)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, child in node.value:
            yield from _key_problems(key, first)
            yield from _problems(child)


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
