"""The ratchet, the meter it reads, and the grids that are thinned to stay below it."""

import collections
import itertools
import json
import subprocess
import sys
import time
import types

import pytest
from cpu_meter import Meter, Tree, workload_s
from grids import covering, thinned
from ratchet import FLOOR_S, TESTS, Ratchet, folder_of, judge, limits, partial, whole

TABLE = {"cpu": "ours", "default": {"data": 40, "semi": 2}, "slow": {"data": 100}}
SLOWEST = {("data", "default"): [(30.0, "data::the_slow_one"), (5.0, "data::another")]}


def test_a_folder_may_spend_half_more_than_its_figure_and_a_little():
    allowed = limits(TABLE, cpu="ours")
    assert allowed["data", "default"] == 60 + FLOOR_S
    assert judge({("data", "default"): 60 + FLOOR_S}, allowed, SLOWEST) == []
    (complaint,) = judge({("data", "default"): 61 + FLOOR_S}, allowed, SLOWEST)
    assert complaint.startswith("data, default tests: 71 CPU seconds, must be at most 70; make")
    assert "30.0 s  data::the_slow_one" in complaint
    assert "5.0 s  data::another" in complaint


def test_the_slow_tests_of_a_folder_have_a_figure_of_their_own():
    spent = {("data", "default"): 45.0, ("data", "slow"): 165.0, ("semi", "default"): 12.0}
    found = judge(spent, limits(TABLE, cpu="ours"), {place: [] for place in spent})
    assert [complaint.partition(":")[0] for complaint in found] == ["data, slow tests"]


def test_a_folder_without_a_figure_may_spend_the_floor():
    spent = {("new", "default"): FLOOR_S + 1}
    assert len(judge(spent, limits(TABLE, cpu="ours"), {("new", "default"): []})) == 1
    assert judge({("new", "default"): FLOOR_S - 1}, limits(TABLE, cpu="ours"), {}) == []


def test_another_model_of_cpu_has_more_leave():
    assert limits(TABLE, cpu="theirs")["data", "default"] == 80 + FLOOR_S


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["."], {"data", "gpipe", "."}),
        (["data", "gpipe/test_feed.py"], {"data"}),
        (["data/test_idx.py::test_one", "gpipe"], {"gpipe"}),
        (["gpipe/deeper"], set()),
    ],
)
def test_only_folders_that_ran_whole_are_judged(arguments, expected):
    given = [str(TESTS / argument) for argument in arguments]
    assert whole({"data", "gpipe", "."}, given) == expected


def test_a_folder_is_the_first_below_tests():
    assert folder_of(TESTS / "gpipe" / "deeper" / "test_one.py") == "gpipe"
    assert folder_of(TESTS / "test_config.py") == "."


def options(**changes):
    given = {"markexpr": "not slow", "keyword": "", "no_ratchet": False, "record_seconds": False}
    return types.SimpleNamespace(**given | changes)


@pytest.mark.parametrize(
    "changes", [{"keyword": "resume"}, {"markexpr": "not slow and gpu"}, {"lf": True}]
)
def test_a_run_of_some_tests_judges_nothing(changes):
    assert not partial(options())
    assert partial(options(**changes))


def finished(monkeypatch, *, exitstatus=0, **changes):
    """Return a ratchet, and the exit status, after a session whose one test cost 500 seconds."""
    config = types.SimpleNamespace(option=options(**changes), args=[str(TESTS)])
    ratchet = Ratchet(config)
    monkeypatch.setattr(ratchet, "_table", TABLE | {"workload_s": 0.02})
    monkeypatch.setattr("ratchet.METER", Meter())
    ratchet._spent["data", "default", "data::the_slow_one"] = 500.0
    ratchet._paces["data"] = [0.04, 0.03, 0.9]  # twice as slow as the table's machine
    session = types.SimpleNamespace(exitstatus=exitstatus)
    ratchet.pytest_sessionfinish(session, exitstatus)
    return ratchet, session.exitstatus


def test_a_session_that_costs_too_much_fails_and_says_where(monkeypatch):
    ratchet, status = finished(monkeypatch)
    assert status == pytest.ExitCode.TESTS_FAILED
    (complaint,) = ratchet.complaints
    assert "250 CPU seconds" in complaint
    assert "data::the_slow_one" in complaint


@pytest.mark.parametrize("changes", [{"no_ratchet": True}, {"keyword": "one"}, {"exitstatus": 1}])
def test_a_session_is_not_judged_on_request_in_part_or_after_a_failure(monkeypatch, changes):
    ratchet, status = finished(monkeypatch, **changes)
    assert ratchet.complaints == []
    assert status == changes.get("exitstatus", 0)


def test_what_was_spent_is_recorded_on_request_and_the_heading_stays(monkeypatch, tmp_path):
    table = tmp_path / "seconds.yaml"
    table.write_text("# why\n\ncpu: ours\n")
    monkeypatch.setattr("ratchet.TABLE", table)
    ratchet, status = finished(monkeypatch, record_seconds=True)
    assert (ratchet.complaints, status) == ([], 0)
    assert table.read_text().startswith("# why\n\ncpu: ours\n")
    assert "default:\n  data: 250\n  semi: 2\n" in table.read_text()


def test_what_another_process_spent_counts_by_its_own_pace(monkeypatch):
    ratchet, _ = finished(monkeypatch, no_ratchet=True)
    other, _ = finished(monkeypatch, no_ratchet=True)
    other._spent = collections.Counter({("semi", "default", "semi::one"): 9.0})
    other._paces = {"semi": [0.06]}
    ratchet.take(json.loads(json.dumps(other.costs())))
    assert ratchet._seconds() == pytest.approx({("data", "default"): 250, ("semi", "default"): 3})


# The meter


def test_ticks_follow_children_and_orphans_but_no_strangers():
    tree = Tree(10, without=[19])
    tree.look({1: (0, 1, 99), 10: (1, 5, 100), 19: (10, 6, 50)})
    assert tree.ticks == 100
    tree.look({1: (0, 1, 99), 10: (1, 5, 110), 11: (10, 7, 20), 12: (11, 8, 5), 19: (10, 6, 60)})
    assert tree.ticks == 135
    tree.look({1: (0, 1, 200), 10: (1, 5, 130), 12: (1, 8, 15)})  # 11 was waited for, 12 was not
    assert tree.ticks == 145
    tree.look({1: (0, 1, 300), 10: (1, 5, 131)})  # nobody waits for 12
    assert tree.ticks == 145
    tree.look({1: (0, 1, 300), 10: (1, 5, 141), 12: (1, 9, 70)})  # its number is another's now
    assert tree.ticks == 155
    tree.leave_out(13)
    tree.look({10: (1, 5, 151), 13: (10, 9, 700), 14: (13, 9, 70)})
    assert tree.ticks == 165


def burn():
    """Spend half a CPU second, and return how much it was."""
    start = time.process_time()
    while time.process_time() < start + 0.5:
        sum(range(10_000))
    return time.process_time() - start


def reached(meter, seconds):
    """Return what the meter shows once it is that much, for it looks a few times a second."""
    limit = time.monotonic() + 120
    while meter.seconds() < seconds and time.monotonic() < limit:
        time.sleep(0.05)
    return meter.seconds()


def test_the_meter_counts_this_process_and_its_children_and_knows_what_is_aside():
    code = "import time\nwhile time.process_time() < 0.5: pass"
    meter = Meter()
    meter.start()
    try:
        own = reached(meter, burn() - 0.1)
        with meter.aside():
            subprocess.run([sys.executable, "-S", "-c", code], check=True)
            after = reached(meter, own + 0.4)
    finally:
        meter.stop()
    assert own >= 0.4
    assert after >= own + 0.4
    assert meter.shared >= 0.4
    assert meter.seconds() == after


def test_a_meter_that_is_gone_stops_the_count_and_not_the_tests():
    meter = Meter()
    meter.start()
    seconds = meter.seconds()
    meter._watcher.kill()
    meter._watcher.wait()
    assert meter.seconds() == seconds
    meter.stop()


def test_the_work_that_tells_how_slow_a_machine_is_takes_a_moment():
    assert 0 < workload_s() < 10


# Grids


AXES = ["gpipe", "1f1b"], ["never", "always", "last"], [8, 7, 3, 1], [1.0, [2.0]]


def test_a_covering_subset_has_every_pair_of_values():
    chosen = covering(*AXES)
    assert len(chosen) < 20 < len(list(itertools.product(*AXES))) == 48
    for first, second in itertools.combinations(range(len(AXES)), 2):
        for pair in itertools.product(AXES[first], AXES[second]):
            assert any([case[first], case[second]] == list(pair) for case in chosen), pair


def test_a_thinned_grid_is_whole_and_the_rest_of_it_is_slow():
    grid = thinned(*AXES)
    assert [tuple(case.values) for case in grid] == list(itertools.product(*AXES))
    assert [tuple(case.values) for case in grid if not case.marks] == sorted(
        covering(*AXES), key=list(itertools.product(*AXES)).index
    )
