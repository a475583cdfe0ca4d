"""The tests of two folders run in a process beside all others: they mostly wait for processes.

A run of all tests, or of all slow ones, gives those folders to a second pytest, which starts a Ray
of its own. When its own tests have ended it takes over what the second reports, as if that had run
here. A run of some tests (paths, ``-k``, ``-x`` and their like) does all itself.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cpu_meter import METER
from ratchet import partial

FOLDERS = tuple(Path(__file__).resolve().parent / name for name in ("runtime", "gpipe"))
"""Their tests take about as long as those of all other folders."""

_PATIENCE_S = 60.0


def add_options(group):
    """Add what a user may say, and what the first process tells the second."""
    group.addoption("--alone", action="store_true", help="run all tests in this process")
    group.addoption("--reports", metavar="FILE", help="what a second process writes")


def register(config, ratchet, folders=FOLDERS):
    """Have a run of all tests share them with a second process; that one tells its reports."""
    if config.option.reports:
        config.pluginmanager.register(Second(config, ratchet))
    elif shares(config):
        config.pluginmanager.register(First(config, ratchet, folders))


def shares(config):
    """Return whether a run is of all tests, and there is a core for a second process."""
    options = config.option
    some = config.args_source is not config.ArgsSource.TESTPATHS or partial(options)
    stops = options.maxfail or options.usepdb or options.trace or options.basetemp or options.alone
    return not (some or stops) and len(os.sched_getaffinity(0)) > 1


class Second:
    """Tells each report, and last what the tests cost, a line of JSON each."""

    def __init__(self, config, ratchet):
        self._config, self._ratchet = config, ratchet

    def pytest_runtest_logreport(self, report):
        to_data = self._config.hook.pytest_report_to_serializable
        self._tell(to_data(config=self._config, report=report))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self):
        self._tell({"costs": self._ratchet.costs()})

    def _tell(self, data):
        with open(self._config.option.reports, "a") as file:
            file.write(json.dumps(data) + "\n")


class First:
    """Leaves folders to a second process, and takes over what that reports."""

    def __init__(self, config, ratchet, folders):
        self._config, self._ratchet, self._folders = config, ratchet, folders
        self._names = " and ".join(folder.name for folder in folders)

    def pytest_report_header(self):
        return f"beside this process: {self._names} (--alone runs all here)"

    def pytest_ignore_collect(self, collection_path):
        return True if collection_path in self._folders else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session):
        with tempfile.TemporaryDirectory() as place:
            reports, said = Path(place, "reports.jsonl"), Path(place, "said.txt")
            with self._begun(reports, said) as process:
                result = yield
                process.wait()
            self._take(session, reports, process.returncode, said.read_text())
        return result

    @contextlib.contextmanager
    def _begun(self, reports, said):
        own = [a for a in self._config.invocation_params.args if a != "--record-seconds"]
        own += [*self._folders, "--no-ratchet", "--reports", reports]
        with (
            said.open("w") as output,
            subprocess.Popen(
                [sys.executable, "-m", "pytest", *map(str, own)],
                cwd=self._config.invocation_params.dir,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it is stopped from here
            ) as process,
        ):
            METER.leave_out(process.pid)
            try:
                yield process
            finally:
                _stop(process)

    def _take(self, session, reports, status, said):
        """Have all plugins see the reports, and this session fail if they are not all there is."""
        lines = reports.read_text().splitlines() if reports.exists() else []
        told = [json.loads(line) for line in lines]
        found = [data for data in told if "costs" not in data]
        session.testscollected += len({data["nodeid"] for data in found})
        hook, config = self._config.hook, self._config
        for data in found:
            report = hook.pytest_report_from_serializable(config=config, data=data)
            if isinstance(report.longrepr, list):  # where a test was skipped; JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            hook.pytest_runtest_logreport(report=report)
        fine = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        failed = any(data["outcome"] == "failed" for data in found)
        if found == told or not (
            failed if status == pytest.ExitCode.TESTS_FAILED else status in fine
        ):
            session.shouldfail = f"the tests of {self._names} did not come to their end"
            raise session.Failed(f"{session.shouldfail}:\n{said}")
        self._ratchet.take(told[-1]["costs"])


def _stop(process):
    """End the second process where this one is told to end; in peace, for the sake of its Ray."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
