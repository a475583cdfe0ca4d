"""Progress: a bar in a terminal, lines with an estimate elsewhere."""

import io
import sys

import pytest

from raykb.runtime import progress
from raykb.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_a_line_comes_now_and_then_with_what_is_left(clock, capsys):
    with Progress("policy search", 100, "") as shown:
        shown.update(1)
        clock[0] += 20
        shown.update(20)
        clock[0] += 5
        shown.update(25)
        clock[0] += 75
        shown.update(100, note="best 0.93")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "policy search: 20/100, 20 s, about 80 s left"
    assert lines[1] == "policy search: 100/100, 100 s, best 0.93"
    assert lines[-1] == lines[1]


def test_in_a_terminal_it_is_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("final trainings", 18, "") as shown:
        shown.update(9)
    output = sys.stderr.getvalue()
    assert "final trainings:  50%|" in output
    assert "9/18" in output


def test_an_error_is_not_followed_by_a_line_that_looks_finished(clock, capsys):
    with pytest.raises(KeyError), Progress("search", 2, ""):
        raise KeyError
    assert capsys.readouterr().err == ""
