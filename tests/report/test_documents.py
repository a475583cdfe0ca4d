"""Tables of a comparison are found again in a document; those of the READMEs are such tables."""

import re
from pathlib import Path

import pytest

from raykb.report.comparison import ComparisonTable
from raykb.report.documents import renewed
from raykb.report.tables import cells, markdown

ROOT = Path(__file__).parents[2]
NUMBER = r"[+-]\d+(?:\.\d+)?(?:e[+-]\d+)?"


def report(scores, metrics):
    rows = [
        {"label": label, "seed": seed, "test/top1": top1, "test/loss": 1 - top1}
        for label, found in scores.items()
        for seed, top1 in enumerate(found)
    ]
    return ComparisonTable(rows, over="method", subject="b", metrics=metrics).text()


OLD = report({"a": [0.5, 0.6], "b": [0.6, 0.65]}, ["test/top1", "test/loss"])
NEW = report({"b": [0.7, 0.9], "a": [0.4, 0.8]}, ["test/loss", "test/top1"])


def test_the_tables_of_a_document_are_made_again_and_all_else_stays():
    other = OLD.replace("method", "model")
    document = f"# A\n\n{OLD}\n\nWords.\n\n{other}\n"
    assert renewed(document, OLD) == document
    loss, top1, rule = NEW.split("\n\n")
    expected = f"# A\n\n{top1}\n\n{loss}\n\n{rule}\n\nWords.\n\n{other}\n"
    assert renewed(document, NEW) == expected


@pytest.mark.parametrize(("document", "count"), [("", 0), (f"{OLD}\n\n{OLD}", 2)])
def test_a_table_that_is_not_there_once_is_refused(document, count):
    with pytest.raises(ValueError, match=rf"{count} tables begin with method \| .* rows a, b;"):
        renewed(document, OLD)


def test_other_labels_are_another_table():
    with pytest.raises(ValueError, match="0 tables begin"):
        renewed(OLD.replace("| a ", "| c "), NEW)


def comparisons():
    """Return the lines of each table of a README that has the form of compare.py's."""
    tables = []
    for path in sorted([ROOT / "README.md", *ROOT.glob("*/**/README.md")]):
        for found in re.finditer(r"^\|.*(?:\n\|.*)*", path.read_text("utf-8"), re.MULTILINE):
            lines = found[0].splitlines()
            head = cells(lines[0])
            if len(head) == 5 and head[3].endswith(f" − {head[0]}"):
                tables.append(pytest.param(lines, id=f"{path.relative_to(ROOT)}-{head[1]}"))
    return tables


@pytest.mark.parametrize("lines", comparisons())
def test_tables_of_the_readmes_are_as_compare_py_writes_them(lines):
    head, _, *rows = map(cells, lines)
    assert markdown(head, rows).splitlines() == lines
    subject = head[3].removesuffix(f" − {head[0]}")
    assert head[2:] == ["sd", f"{subject} − {head[0]}", "95 % interval"]
    assert [row[0] for row in rows if row[3:] == ["", ""]] == [subject]
    for label, _, sd, difference, interval in rows:
        assert float(sd) >= 0
        if label != subject:
            assert re.fullmatch(f"{NUMBER} to {NUMBER}", interval)
            low, high = map(float, interval.split(" to "))
            digits = min(len(text.partition(".")[2]) for text in interval.split(" to "))
            assert float(difference) == pytest.approx((low + high) / 2, abs=1.01 * 10**-digits)


def test_the_readmes_have_such_tables():
    assert len(comparisons()) >= 8
