"""A limit to what each folder of tests costs: more than half above its figure ends in a failure.

``tests/seconds.yaml`` has the figures, ``tests/README.md`` says how to live with them. What is
compared are CPU seconds (:mod:`cpu_meter`), divided by how slow the machine is while they are
spent, so a busy machine does not fail.
"""

import collections
import contextlib
import statistics
from pathlib import Path

import pytest
import yaml
from cpu_meter import METER, workload_s

TESTS = Path(__file__).resolve().parent
TABLE = TESTS / "seconds.yaml"
OWN, FOREIGN = 1.5, 2.0
"""What may be spent for each second of the table: on its model of CPU, and on others."""

FLOOR_S = 10.0
"""So much may be spent beyond that, and by a folder that is not in the table."""

MARKS = ("", "slow", "not slow", "slow or not slow")
"""With these as ``-m`` a run has all tests of one kind, or of both."""

_EVERY_S = 3.0


def limits(table, *, cpu):
    """Return by (folder, kind) how many of the table's seconds may be spent on a model of CPU."""
    share = OWN if cpu == table["cpu"] else FOREIGN
    return {
        (folder, kind): share * seconds + FLOOR_S
        for kind in ("default", "slow")
        for folder, seconds in table.get(kind, {}).items()
    }


def judge(spent, allowed, slowest):
    """Return a complaint for each (folder, kind) that spent more than is allowed.

    Args:
        spent: by (folder, kind), seconds of the table's machine.
        allowed: the same; what is missing may spend ``FLOOR_S``.
        slowest: by (folder, kind), the tests that cost most as pairs (seconds, name), descending.
    """
    complaints = []
    for place, seconds in sorted(spent.items()):
        limit = allowed.get(place, FLOOR_S)
        if seconds > limit:
            folder, kind = place
            lines = [f"{one:8.1f} s  {name}" for one, name in slowest[place]]
            complaints.append(
                f"{folder}, {kind} tests: {seconds:.0f} CPU seconds, must be at most {limit:.0f}; "
                "make these cheaper, or record what they are worth (tests/README.md):\n"
                + "\n".join(lines)
            )
    return complaints


def folder_of(path):
    """Return the folder of a test file below ``tests``; ``.`` for ``tests`` itself."""
    return path.resolve().relative_to(TESTS).parts[0] if path.resolve().parent != TESTS else "."


def whole(folders, arguments):
    """Return those folders that are run whole, given the paths of the command line."""
    given = [Path(argument).resolve() for argument in arguments if "::" not in argument]
    return {
        folder for folder in folders if any((TESTS / folder).is_relative_to(path) for path in given)
    }


def partial(options):
    """Return whether options of pytest leave out tests otherwise than by the mark ``slow``."""
    names = ("keyword", "deselect", "ignore", "ignore_glob", "lf", "stepwise", "collectonly")
    return any(getattr(options, name, None) for name in names) or options.markexpr not in MARKS


class Ratchet:
    """The plugin: measures each test, and judges folders that ran whole and passed."""

    def __init__(self, config):
        self._config = config
        self._table = yaml.safe_load(TABLE.read_text()) if TABLE.exists() else {}
        self._spent = collections.Counter()  # by (folder, kind, test)
        self._paces = collections.defaultdict(list)  # by folder: seconds of the workload
        self._paced = -_EVERY_S
        self.complaints = []

    def pytest_sessionstart(self):
        METER.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        folder = folder_of(item.path)
        self._pace(folder)
        kind = "slow" if item.get_closest_marker("slow") else "default"
        start, shared = METER.seconds(), METER.shared
        try:
            return (yield)
        finally:
            own = METER.seconds() - start - (METER.shared - shared)
            self._spent[folder, kind, item.nodeid] += max(0.0, own)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        with METER.aside() if fixturedef.scope == "session" else contextlib.nullcontext():
            return (yield)

    def _pace(self, folder):
        now = METER.seconds()
        if not self._paces[folder] or now - self._paced >= _EVERY_S:
            self._paced = now
            self._paces[folder].append(workload_s())

    def pytest_sessionfinish(self, session, exitstatus):
        options = self._config.option
        whole_ones = set() if partial(options) else whole(self._folders(), self._config.args)
        spent = {place: s for place, s in self._seconds().items() if place[0] in whole_ones}
        if options.record_seconds and exitstatus == 0:
            self._record(spent)
        elif exitstatus == 0 and not options.no_ratchet and self._table:
            allowed = limits(self._table, cpu=cpu_model())
            slowest = {
                place: self._slowest([key for key in self._spent if key[:2] == place])
                for place in spent
            }
            self.complaints = judge(spent, allowed, slowest)
            if self.complaints:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        METER.stop()

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter):
        seconds = self._seconds()
        if not seconds:
            return
        terminalreporter.section("CPU seconds, as on the machine of tests/seconds.yaml")
        for (folder, kind), value in sorted(seconds.items()):
            figure = self._table.get(kind, {}).get(folder, "none yet")
            line = f"{value:8.1f}  {folder}, {kind}; figure: {figure}; slowness "
            terminalreporter.line(f"{line}{self._slowness(folder):.2f}")
        terminalreporter.line(f"{METER.shared:8.1f}  what all share: Ray, processes of gloo")
        terminalreporter.line("slowest tests:")
        for value, test in self._slowest(self._spent, 10):
            terminalreporter.line(f"{value:8.1f}  {test}")
        for complaint in self.complaints:
            terminalreporter.line(complaint, red=True)

    def costs(self):
        """Return what this process spent, and how slow it was, as JSON has it."""
        spent = [[*key, seconds] for key, seconds in self._spent.items()]
        return {"spent": spent, "paces": self._paces, "shared": METER.shared}

    def take(self, costs):
        """Add what another process spent."""
        for *key, seconds in costs["spent"]:
            self._spent[tuple(key)] += seconds
        for folder, paces in costs["paces"].items():
            self._paces[folder] += paces
        METER.shared += costs["shared"]

    def _folders(self):
        return {folder for folder, _, _ in self._spent}

    def _slowness(self, folder):
        return statistics.median(self._paces[folder]) / self._table.get("workload_s", 0.02)

    def _seconds(self):
        """Return by (folder, kind) the seconds that the table's machine would have taken."""
        total = collections.Counter()
        for (folder, kind, _), seconds in self._spent.items():
            total[folder, kind] += seconds / self._slowness(folder)
        return dict(total)

    def _slowest(self, keys, count=5):
        """Return (seconds, test) of those of the keys that cost most."""
        found = [(self._spent[key] / self._slowness(key[0]), key[-1]) for key in keys]
        return sorted(found, reverse=True)[:count]

    def _record(self, spent):
        figures = {"workload_s": 0.02, "cpu": cpu_model()} | self._table
        for (folder, kind), seconds in spent.items():
            figures.setdefault(kind, {})[folder] = max(1, round(seconds))
        heading = TABLE.read_text().split("\n\n")[0] + "\n\n" if TABLE.exists() else ""
        TABLE.write_text(heading + yaml.safe_dump(figures))


def cpu_model():
    """Return the name of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")
