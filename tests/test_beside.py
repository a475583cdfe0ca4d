"""A run of all tests shares them with a second process, and tells of both as one."""

import subprocess
import sys
import types
from pathlib import Path

import beside
import pytest

TESTS = Path(__file__).resolve().parent
CONFTEST = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
import beside
os.sched_getaffinity = lambda process: {{0, 1}}

class Costs:
    taken = []
    def costs(self):
        return {{"seconds": 7}}
    def take(self, costs):
        self.taken.append(costs["seconds"])
    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.line(f"taken {{self.taken}}")

def pytest_addoption(parser):
    group = parser.getgroup("beside")
    beside.add_options(group)
    for option in ("--no-ratchet", "--record-seconds"):
        group.addoption(option, action="store_true")

def pytest_configure(config):
    costs = Costs()
    config.pluginmanager.register(costs)
    tests = Path(__file__).parent / "tests"
    beside.register(config, costs, [tests / "two", tests / "more"])
"""
TEST = "import os\ndef test_{name}():\n    with open('ran', 'a') as file:\n"
TEST += "        file.write('{name} ' + str(os.getpid()) + '\\n')\n    {last}\n"


@pytest.fixture
def run(tmp_path):
    """Run pytest on one test, and on two in folders that are for a second process."""

    def run(*arguments, last="pass"):
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
        places = (("one", "here", "pass"), ("two", "there", last), ("more", "too", "pass"))
        for folder, name, end in places:
            (tmp_path / "tests" / folder).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "tests" / folder / f"test_{name}.py"
            path.write_text(TEST.format(name=name, last=end))
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        ran = (tmp_path / "ran").read_text().split()
        return done, dict(zip(ran[::2], ran[1::2], strict=True))

    return run


def test_what_a_second_process_runs_counts_as_if_it_had_run_here(run):
    done, ran = run()
    assert done.returncode == 0, done.stdout
    assert ran.keys() == {"here", "there", "too"}
    assert ran["here"] != ran["there"] == ran["too"]
    assert "3 passed" in done.stdout
    assert "taken [7]" in done.stdout


def test_a_test_that_fails_there_fails_the_run_with_its_words(run):
    done, ran = run(last="raise ArithmeticError('of its own')")
    assert done.returncode == 1
    assert ran.keys() == {"here", "there", "too"}
    assert "1 failed, 2 passed" in done.stdout
    assert "FAILED tests/two/test_there.py::test_there - ArithmeticError: of its own" in done.stdout


def test_a_test_that_is_skipped_there_is_told_to_plugins_as_any_other(run, tmp_path):
    done, _ = run("--junitxml", str(tmp_path / "all.xml"), last="__import__('pytest').skip('no')")
    assert done.returncode == 0, done.stdout
    assert "2 passed, 1 skipped" in done.stdout
    written = (tmp_path / "all.xml").read_text()
    assert 'tests="3"' in written
    assert 'skipped="1"' in written


@pytest.mark.parametrize("last", ["os._exit(0)", "this is no Python"])
def test_a_second_process_that_does_not_come_to_its_end_fails_the_run(run, last):
    done, ran = run(last=last)
    assert done.returncode == 1
    assert "here" in ran
    assert "the tests of two and more did not come to their end" in done.stdout


def test_one_process_runs_all_where_some_tests_are_asked_for(run):
    done, ran = run("tests")
    assert done.returncode == 0, done.stdout
    assert ran.keys() == {"here", "there", "too"}
    assert len(set(ran.values())) == 1
    assert "taken []" in done.stdout


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"markexpr": "slow"}, True),
        ({"keyword": "one"}, False),
        ({"maxfail": 1}, False),
        ({"usepdb": True}, False),
        ({"basetemp": "x"}, False),
        ({"alone": True}, False),
    ],
)
def test_a_run_is_shared_if_it_is_of_all_tests_of_a_kind(monkeypatch, changes, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    names = ("maxfail", "usepdb", "trace", "basetemp", "alone")
    given = {"markexpr": "not slow"} | dict.fromkeys(names)
    sources = pytest.Config.ArgsSource
    config = types.SimpleNamespace(
        option=types.SimpleNamespace(**given | changes),
        args_source=sources.TESTPATHS,
        ArgsSource=sources,
    )
    assert beside.shares(config) is expected
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    assert not beside.shares(config)
