"""The page of promises names tests that exist, and says of what has none that it is open."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "raykb" / "runtime" / "README.md"
COUNTS = {"A": 15, "B": 8, "C": 9, "D": 10, "E": 10, "F": 8, "I": 8}
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in PAGE.read_text("utf-8").splitlines()
    if re.match(r"\| [A-I]\d* \|", line)
]


def test_each_item_has_one_row():
    items = [f"{letter}{n}" for letter, count in COUNTS.items() for n in range(1, count + 1)]
    assert sorted(row[0] for row in ROWS) == sorted([*items, "G"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_promise_has_tests_that_exist_or_is_open(row):
    _, fault, promise, tests = row
    assert fault
    named = re.findall(r"`([^`]+)::(test_\w+)`", tests)
    assert tests.count("`") == 2 * len(named)
    assert bool(named) != promise.startswith("open: ")
    for file, name in named:
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE)
