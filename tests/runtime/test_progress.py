"""Progress: one line with an estimate, rewritten in a terminal, now and then elsewhere."""

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


@pytest.fixture
def said(clock, monkeypatch):
    """What is said of (seconds, done, before) one after another, as it is rewritten."""

    def lines(total, unit, *news):
        monkeypatch.setattr(sys, "stderr", Terminal())
        texts = []
        with Progress("work", total, unit) as shown:
            for seconds, done, *before in news:
                clock[0] = 100.0 + seconds
                shown.update(done, before=sum(before))
                texts.append(sys.stderr.getvalue().rpartition("| ")[2].strip())
        return [text.removeprefix("work: ") for text in texts]

    return lines


def test_in_a_log_a_line_comes_now_and_then_and_at_the_end(clock, capsys):
    with Progress("final trainings", 18, "trainings") as shown:
        for seconds, done in [(0, 0.2), (14, 1.0), (60, 3.6), (61, 3.7), (120, 7.149), (300, 18)]:
            clock[0] = 100.0 + seconds
            shown.update(done)
    assert capsys.readouterr().err.splitlines() == [
        "final trainings: 3 of 18 trainings, 20 %, about 4 min left",
        "final trainings: 7 of 18 trainings, 40 %, about 3 min left",
        "final trainings: 18 of 18 trainings, 100 %",
        "final trainings: 18 of 18 trainings, 100 %, took 5 min",
    ]


def test_in_a_terminal_one_line_is_rewritten(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("policy search", 120, "candidates") as shown:
        for second in range(31):
            clock[0] = 100.0 + second
            shown.update(second + 1)
    *frames, last = sys.stderr.getvalue().rstrip("\n").split("\r")
    assert sys.stderr.getvalue().count("\n") == 1
    assert "policy search: 31 of 120 candidates, 26 %, about 90 s left" in "".join(frames)
    assert last.strip().endswith("31 of 120 candidates, 26 %, about 90 s left, took 30 s")


def test_of_a_single_piece_the_percent_and_its_note_are_told(clock, capsys):
    with Progress("training", 1, "trainings") as shown:
        shown.update(0.1)
        clock[0] += 20
        shown.update(0.3, "loss 0.31")
    first, _ = capsys.readouterr().err.splitlines()
    assert first == "training: 30 %, about 70 s left, loss 0.31"


def test_pieces_that_are_begun_are_not_counted_as_finished(clock, capsys):
    with Progress("work", 4, "trainings") as shown:
        shown.update(1.98, finished=0)
    assert capsys.readouterr().err.startswith("work: 0 of 4 trainings, 50 %")


def test_only_the_end_is_a_hundred_percent(said):
    assert said(1000, "pieces", (0, 999.9), (9, 1000)) == [
        "999 of 1000 pieces, 99 %",
        "1000 of 1000 pieces, 100 %",
    ]


def test_what_an_earlier_run_did_does_not_count_for_the_pace(said):
    """Eight pieces are found, a ninth goes on from its middle: one new piece a minute."""
    news = [(0, 8, 8), (5, 8.5, 8.5), (35, 9, 8.5), (65, 9.5, 8.5), (95, 10, 8.5)]
    assert said(12, "pieces", *news)[2:] == [
        "9 of 12 pieces, 75 %",
        "9 of 12 pieces, 79 %, about 2 min left",
        "10 of 12 pieces, 83 %, about 2 min left",
    ]


def test_the_start_of_workers_does_not_count_for_the_pace(said):
    """They need 100 s to start, and 10 s for each piece."""
    assert said(10, "pieces", (0, 0), (110, 1), (120, 2), (130, 3))[-2:] == [
        "2 of 10 pieces, 20 %, about 80 s left",
        "3 of 10 pieces, 30 %, about 70 s left",
    ]


def test_the_first_moments_tell_no_pace(said):
    """Two workers report within a second, and then once a minute."""
    assert said(100, "pieces", (0, 1), (1, 2), (60, 3), (61, 4))[:2] == [
        "1 of 100 pieces, 1 %",
        "2 of 100 pieces, 2 %",
    ]


def test_a_burst_at_the_start_is_forgotten(said):
    """A thousand candidates of a ledger within three seconds, then one every second."""
    burst = [(0.003 * number, number) for number in range(1, 1001)]
    then = [(3 + second, 1000 + second) for second in range(1, 11)]
    assert said(1050, "pieces", *burst, *then)[-1] == "1010 of 1050 pieces, 96 %, about 40 s left"


def test_a_slower_second_half_is_known_to_be_slower(said):
    """Fifty pieces of a second, then ten of five seconds."""
    fast = [(second, second) for second in range(1, 51)]
    slow = [(50 + 5 * number, 50 + number) for number in range(1, 11)]
    assert said(80, "pieces", *fast, *slow)[-1] == "60 of 80 pieces, 75 %, about 100 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2, "5 s"), (23, "25 s"), (100, "100 s"), (170, "3 min"), (5000, "83 min"), (9000, "2.5 h")],
)
def test_times_have_the_digits_of_an_estimate(said, seconds, text):
    assert said(3, "pieces", (0, 1), (seconds, 2))[-1] == f"2 of 3 pieces, 67 %, about {text} left"


def test_an_error_is_not_followed_by_a_line_that_looks_finished(clock, capsys):
    with pytest.raises(KeyError), Progress("search", 2, "candidates"):
        raise KeyError
    assert capsys.readouterr().err == ""
