"""What is wrong with a configuration, or with the run that it describes, told all at once."""

import contextlib
import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any


class ConfigError(ValueError):
    """All that is wrong with a configuration.

    Attributes:
        source: what is wrong; the file's name.
        problems: one line each.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        super().__init__("\n  - ".join([f"{source}: {count}", *problems]))
        self.source = source
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, tuple[str, ...]]]:
        return ConfigError, (self.source, self.problems)


class Problems:
    """Collects what is wrong, place by place, and refuses once::

        problems = Problems()
        with problems.at("recipe", config["recipe"]):
            recipe = build(Recipe, config["recipe"])
        problems.refuse("this run cannot be")

    What is bound in a block that went wrong is not there afterwards.
    """

    def __init__(self) -> None:
        self._found: dict[str, None] = {}  # in order, each once

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def add(self, *problems: str) -> None:
        """Take over problems, which say themselves where they are."""
        self._found |= dict.fromkeys(problems)

    @contextlib.contextmanager
    def at(self, place: str = "", arguments: Iterable[str] = ()) -> Iterator[None]:
        """Collect what the block refuses by ValueError, TypeError or OSError, which ends it.

        Args:
            place: dotted key of what the block makes; empty if its messages say it.
            arguments: names of its arguments; a section will do. A message on several of them is
                taken apart before each name, and what begins with one is told at its own key.
        """
        place = place.rstrip(".")
        try:
            yield
        except ConfigError as error:
            self.add(*(f"{place}{'.' if place else ''}{problem}" for problem in error.problems))
        except (ValueError, TypeError, OSError) as error:
            self.add(*told_at(place, str(error), arguments))

    def refuse(self, what: str = "this run cannot be") -> None:
        """Raise ConfigError if there are problems; it says ``what`` and names them all."""
        if self._found:
            raise ConfigError(what, list(self._found))


def told_at(place: str, text: str, arguments: Iterable[str]) -> list[str]:
    """Return the problems in what a constructor says, each with the key that it is about.

    ``"lr: -1, must be positive; epochs: 0, must be positive"`` at ``recipe`` becomes
    ``recipe.lr: -1, …`` and ``recipe.epochs: 0, …``; what is no argument's is the section's.
    """
    names = "|".join(map(re.escape, arguments)) or "(?!)"
    parts = re.split(rf"(?:\n\s*-?\s*|;\s+)(?=(?:{names})\b)", text)
    if not place:
        return parts
    return [f"{place}{'.' if re.match(rf'(?:{names}): ', part) else ': '}{part}" for part in parts]


# ---------------------------------------------------------------------- words of messages


def shown(value: Any) -> str:
    """Return a value as JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def listed(names: Iterable[str]) -> str:
    """Return names in order, or that there are none."""
    return ", ".join(sorted(names)) or "nothing"


def unknown(key: str, known: Collection[str]) -> str:
    """Say that there is no such key, and which one may be meant."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown (did you mean {near[0]!r}?)" if near else f"unknown; known: {listed(known)}"
