"""One page of HTML that holds all that it shows, so that it can be mailed and opened offline.

It has no script, and a policy that forbids the browser to fetch anything. All text is escaped.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from string import Template

from raykb.report.tables import cells

BUDGET = 12 * 2**20  # bytes of pictures of a page; mail servers take about twice that

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #ddd; --rule: #999; --soft: #555 }
@media (prefers-color-scheme: dark) { :root { --line: #444; --rule: #888; --soft: #aaa } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1, summary { overflow-wrap: anywhere }
table { border-collapse: collapse; display: block; margin: 1rem 0; overflow-x: auto }
th, td { padding: 0.15rem 0.8rem; text-align: right; vertical-align: top }
th { border-bottom: 2px solid var(--rule) }
td { border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
th:first-child, td:first-child, .left td, .left th { text-align: left }
img { border-radius: 4px; max-height: 60rem; max-width: 100% }
figure { margin: 1rem 0 }
figcaption, .note { color: var(--soft) }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def page(title: str, sections: Mapping[str, Sequence[str]]) -> str:
    """Return a page of sections by heading; a section is pieces of HTML, one without is left out.

    Args:
        title: as text.
        sections: headings as text; what :func:`told`, :func:`table`, … return.
    """
    parts = [
        "\n".join([f"<h2>{html.escape(heading)}</h2>", *pieces])
        for heading, pieces in sections.items()
        if pieces
    ]
    return _PAGE.substitute(title=html.escape(title), body="\n".join(parts))


def results_page(
    title: str,
    *,
    texts: Sequence[str],
    files: Mapping[str, bytes],
    labels: Sequence[str],
    differing: Mapping[str, Mapping[str, str]],
    alike: Mapping[str, str],
) -> str:
    """Return the page of a comparison.

    Args:
        title: as text.
        texts: Markdown, as the reports have it.
        files: PNG files by name; the first ones come first.
        labels: of what is compared.
        differing: settings that are not the same for all of them, by setting and label; a label
            that is a mean of others has none.
        alike: those that are.
    """
    rows = [
        [key, *(values.get(label, "") for label in labels)] for key, values in differing.items()
    ]
    same = table(["setting", "value"], alike.items(), of_text=True)
    return page(
        title,
        {
            "Results": [told(text) for text in texts],
            "Pictures": pictures(files),
            "What differs": [table(["setting", *labels], rows, of_text=True)] if rows else [],
            "What is the same": [folded("settings of all trainings", same)] if alike else [],
        },
    )


def told(text: str) -> str:
    """Return Markdown of the reports, which is tables and paragraphs, as HTML."""
    return "\n".join(_block(block) for block in text.strip().split("\n\n") if block.strip())


def _block(block: str) -> str:
    lines = block.splitlines()
    if not all(line.startswith("|") for line in lines) or len(lines) < 2:
        return f"<p>{html.escape(block)}</p>"
    head, _, *rows = map(cells, lines)
    return table(head, rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, of_text: bool = False) -> str:
    """Return a table; its columns are set to the right, but for the first, or all to the left.

    Args:
        head: of each column.
        rows: as text.
        of_text: whether the cells are words rather than numbers.
    """
    body = "\n".join(_row("td", row) for row in rows)
    kind = ' class="left"' * of_text
    return f"<table{kind}>\n<thead>{_row('th', head)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _row(kind: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{html.escape(cell)}</{kind}>' for cell in cells)}</tr>"


def folded(summary: str, inner: str) -> str:
    """Return HTML that is shown when its summary, a text, is clicked on."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{inner}\n</details>"


def pictures(files: Mapping[str, bytes], *, budget: int = BUDGET) -> list[str]:
    """Return PNG files by name as pictures that are part of the page, as many as it may hold.

    Args:
        files: the first ones come first.
        budget: bytes for all of them; what is too large is named instead.
    """
    shown, left_out, room = [], [], budget
    for name, content in files.items():
        if len(content) > room:
            left_out.append(name)
            continue
        room -= len(content)
        shown.append(_picture(name, content))
    if left_out:
        named = html.escape(", ".join(left_out))
        shown.append(f'<p class="note">Left out, as too large for this page: {named}</p>')
    return shown


def _picture(name: str, content: bytes) -> str:
    data = base64.b64encode(content).decode("ascii")
    text = html.escape(name)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
