"""What arguments must be, in a word each; all that are not are told in one message.

check_settings(self, steps=at_least(1), ema_decay=within(0, 1), clip_norm=or_none(above(0)))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What an argument must be, as a message says it and as a test."""

    text: str
    holds: Callable[[Any], bool]


def at_least(least: float) -> Rule:
    """Return the rule of a number that has a smallest value."""
    return Rule(f"at least {least:g}", lambda value: value >= least)


def above(bound: float) -> Rule:
    """Return the rule of a number that has a bound which it may not reach."""
    return Rule(f"above {bound:g}", lambda value: value > bound)


def within(low: float, high: float) -> Rule:
    """Return the rule of a number in a range that has its low end and not its high one."""
    return Rule(f"in [{low:g}, {high:g})", lambda value: low <= value < high)


def between(low: float, high: float) -> Rule:
    """Return the rule of a number in a range that has both ends."""
    return Rule(f"in {low:g}..{high:g}", lambda value: low <= value <= high)


def among(*allowed: Any) -> Rule:
    """Return the rule of a choice."""
    return Rule(" or ".join(map(repr, allowed)), lambda value: value in allowed)


def or_none(rule: Rule) -> Rule:
    """Return a rule that None keeps, too; a config writes null."""
    return Rule(f"{rule.text}, or null", lambda value: value is None or rule.holds(value))


def misfits(of: object, **rules: Rule) -> list[str]:
    """Return a line for each attribute that does not keep its rule; NaN keeps none."""
    values = ((name, getattr(of, name), rule) for name, rule in rules.items())
    return [
        f"{name}: {value!r}, must be {rule.text}"
        for name, value, rule in values
        if not rule.holds(value)
    ]


def refuse(problems: Sequence[str]) -> None:
    """Raise ValueError if there are problems; it names them all."""
    if problems:
        raise ValueError("; ".join(problems))


def check_settings(of: object, **rules: Rule) -> None:
    """Raise ValueError that names every attribute that does not keep its rule."""
    refuse(misfits(of, **rules))


def refuse_outside(**values: tuple[float, float, float]) -> None:
    """Raise ValueError that names every setting outside its range.

    Args:
        values: by name the value, the least and the greatest that are allowed.
    """
    refuse(
        [
            f"{name}: {value}, must be in {low:g}..{high:g}"
            for name, (value, low, high) in values.items()
            if not low <= value <= high
        ]
    )
