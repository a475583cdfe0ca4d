"""Tables as text, and their values as text and as JSON."""

import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from raykb.metrics.names import PERCENT, Metric

NONE = "–"  # in place of what is missing


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that reads well in a terminal, too: first column left, rest right.

    Line breaks, and what else would move a terminal's cursor, are replaced; bars are escaped.
    """
    head, *rows = (list(map(_one_line, row)) for row in (head, *rows))
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(texts: Sequence[str]) -> str:
        first, *rest = (
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def cells(row: str) -> list[str]:
    """Return the texts of a row that :func:`markdown` made."""
    inner = row.strip().removeprefix("|").removesuffix("|")
    return [text.strip().replace(r"\|", "|") for text in re.split(r"(?<!\\)\|", inner)]


def _one_line(text: str) -> str:
    shown = (letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return "".join(shown).replace("|", r"\|")


def cell(value: float | None, shown: Metric, sign: str = "") -> str:
    """Return a value as its metric is shown, with ``sign="+"`` with its sign; "" for none."""
    form = f"{sign}.2f" if shown.scale == PERCENT else f"{sign}.4g"
    return "" if value is None or pd.isna(value) else format(shown.scale * value, form)


def plain(value: Any) -> Any:
    """Return a value as JSON has it; None for what is not finite."""
    own = value.item() if hasattr(value, "item") else value
    return None if isinstance(own, float) and not math.isfinite(own) else own


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON has them."""
    rows = table.to_dict("records")
    return [{str(key): plain(value) for key, value in row.items()} for row in rows]
