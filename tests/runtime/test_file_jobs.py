"""Files that workers make: each once, again if it would be another, and a hole where one fails."""

import functools
import time

import here
import pytest

from raykb.runtime.file_jobs import LEDGER, FileJob, make_files
from raykb.runtime.resources import WorkerResources


class Stopped(BaseException):
    """As a signal."""


@pytest.fixture
def session(tmp_path):
    return here.session(tmp_path)


def job(name, made, *, key="1", error=None):
    def make(text):
        if error is not None:
            raise error
        made.append(name)
        return text.encode()

    return FileJob(name=name, make=make, arguments={"text": f"{name} {key}"}, key=key)


make = functools.partial(make_files, phase="files", each=WorkerResources())


def test_files_are_made_once_and_again_where_the_key_is_another_or_they_are_gone(session, tmp_path):
    made = []
    names = ["a/x.txt", "a/y.txt", "b.txt"]
    assert make(session, jobs=[job(name, made) for name in names]) == []
    assert sorted(made) == names
    assert (tmp_path / "a" / "y.txt").read_text() == "a/y.txt 1"
    (tmp_path / "b.txt").unlink()
    again = []
    keys = dict(zip(names, "121", strict=True))
    assert make(session, jobs=[job(name, again, key=key) for name, key in keys.items()]) == []
    assert sorted(again) == ["a/y.txt", "b.txt"]
    assert (tmp_path / "a" / "y.txt").read_text() == "a/y.txt 2"


def test_a_file_that_cannot_be_made_is_a_hole_and_no_older_one_passes_for_it(
    session, tmp_path, capsys
):
    made = []
    make(session, jobs=[job("a", made)])
    jobs = [job("a", made, key="2", error=ValueError("no image")), job("b", made)]
    assert make(session, jobs=jobs, on_failure="hole") == ["a"]
    assert session.holes == ["a"]
    assert not (tmp_path / "a").exists()
    assert made == ["a", "b"]
    assert "a: failed, the others go on: ValueError: no image" in capsys.readouterr().err
    assert make(session, jobs=[job("a", made, key="2"), job("b", made)]) == []
    assert made == ["a", "b", "a"]


def test_without_holes_the_first_error_ends_it(session):
    with pytest.raises(ValueError, match="no image"):
        make(session, jobs=[job("a", [], error=ValueError("no image"))])
    assert session.holes == []


def test_a_driver_that_is_stopped_goes_on_with_the_files_that_are_missing(session, tmp_path):
    def stop():
        while not list(session.storage.records(LEDGER)):  # the driver has the first one
            time.sleep(0.01)
        raise Stopped

    made = []
    stops = FileJob(name="b", make=stop, arguments={}, key="1")
    with pytest.raises(Stopped):
        make(session, jobs=[job("a", made), stops, job("c", made)], on_failure="hole")
    rest = []
    assert make(here.session(tmp_path), jobs=[job(name, rest) for name in "abc"]) == []
    assert "a" not in rest
    assert "b" in rest


def test_nothing_to_make_asks_for_no_place(session):
    session.parallel = {"files": 0}
    assert make(session, jobs=[]) == []
