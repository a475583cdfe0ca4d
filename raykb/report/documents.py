"""Tables of a comparison in a document, made again from what was tracked."""

import re

from raykb.report.tables import cells

_TABLE = re.compile(r"^\|.*(?:\n\|.*)*", re.MULTILINE)


def renewed(document: str, text: str) -> str:
    """Return a document with its tables as a report has them; all else in it stays.

    Two tables are the same one if their first two headings, which say what is compared and by
    what, and the labels in their first columns are the same.

    Args:
        document: Markdown.
        text: of the report, as :meth:`raykb.report.comparison.ComparisonTable.text` returns it.

    Raises:
        ValueError: the document has a table of the report not at all, or more than once.
    """
    for table in _TABLE.findall(text):
        places = [found for found in _TABLE.finditer(document) if _of(found[0]) == _of(table)]
        if len(places) != 1:
            headings, labels = _of(table)
            raise ValueError(
                f"{len(places)} tables begin with {' | '.join(headings)} and have the rows "
                f"{', '.join(sorted(labels))}; must be 1, write it there once by hand"
            )
        document = document[: places[0].start()] + table + document[places[0].end() :]
    return document


def _of(table: str) -> tuple[list[str], set[str]]:
    """Return what a table is known by."""
    head, *rows = map(cells, table.splitlines())
    return head[:2], {row[0] for row in rows[1:]}
