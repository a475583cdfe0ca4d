"""What stands still is known, told with its stack, ended, and gone on with as after a death."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_training import STEPS, build, run
from torch import nn

from raykb.engine.loop import Worker
from raykb.runtime.board import HUNG, Board
from raykb.runtime.sentinel import Patience
from raykb.runtime.storage import LocalStorage
from raykb.runtime.watch import Hung, Limits, Watch, hangs, watched
from raykb.runtime.work import _told

SHORT = Limits(times=2.0, least_s=2.0, first_s=120.0)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board():
    return Board()


@pytest.fixture
def watch(board, clock):
    return Watch(Limits(times=5.0, least_s=10.0, first_s=60.0), board, clock=clock)


def test_the_first_step_may_take_long_and_the_next_as_many_times_as_steps_usually_take(
    watch, board, clock
):
    limits = []
    for number, seconds in enumerate([30.0, 1.0, 3.0, 4.0, 5.0]):
        watch.begin(f"step {number}")
        limits.append(board.read()[1])
        clock.now += seconds
        watch.end()
    assert limits == [60.0, 150.0, 77.5, 15.0, 17.5]  # 5 times the median
    watch.begin("step 5")
    assert board.read()[1:] == (20.0, "step 5 (usually 4 s)")


def test_no_step_has_less_than_the_least(watch, board, clock):
    watch.begin("step 1")
    clock.now += 0.01
    watch.end()
    watch.begin("step 2")
    assert board.read()[1:] == (10.0, "step 2 (usually 0.01 s)")


def test_what_is_done_between_steps_does_not_count_as_one(watch, board, clock):
    watch.begin("step 1")
    clock.now += 4.0
    watch.end()
    watch.single("the checkpoint of step 1")
    assert board.read()[1] == 60.0
    clock.now += 50.0
    watch.begin("step 2")
    assert board.read()[1:] == (20.0, "step 2 (usually 4 s)")


def test_at_rest_there_is_no_limit(watch, board):
    assert board.read()[1] == math.inf
    watch.begin("candidate 0")
    watch.rest()
    assert board.read()[1] == math.inf


def test_each_forward_pass_of_an_evaluation_is_a_sign_of_life_and_none_after_it(watch, board):
    network = nn.Linear(2, 2)
    with watch.evaluation("the evaluation on test"):
        before = board.read()[0]
        for _ in range(3):
            network(torch.zeros(1, 2))
        assert board.read() == (before + 3, 60.0, "the evaluation on test")
    network(torch.zeros(1, 2))
    assert board.read()[0] == before + 3


def test_a_training_says_at_which_step_it_is_when_it_waits_evaluates_and_ends(board):
    watch, seen = Watch(Limits(), board), []
    training = build(Worker(), steps=2)
    told = _told(training, watch)
    for number, batch in enumerate(told.batches(0)):
        seen.append(board.read()[2])
        told.step(batch, number)
        told.update(number)
    told.evaluate("test")
    seen.append(board.read()[2])
    assert seen[0] == "step 1 (the first)"
    assert seen[1].startswith("step 2 (usually ")
    assert seen[2] == "the evaluation on test"


@pytest.mark.parametrize("named", ["times", "least_s", "first_s"])
def test_limits_that_limit_nothing_are_refused(named):
    with pytest.raises(ValueError, match=f"{named}: 0, must be above"):
        Limits(**{named: 0})


def test_silence_is_counted_from_the_last_sign_of_life():
    patience = Patience(least_s=100.0)
    assert not patience.lost(1.0, (1, 3.0, "step 1"), False)
    told = [patience.lost(1.0, (1, 3.0, "step 1"), False) for _ in range(4)]
    assert told == ["", "", "", "step 1: no sign of life within 3 s"]
    assert not patience.lost(1.0, (2, 3.0, "step 2"), False)


def test_time_in_which_nobody_looked_does_not_count():
    patience = Patience(least_s=100.0)
    patience.lost(1.0, (1, 3.0, "step 1"), False)
    assert not patience.lost(3600.0, (1, 3.0, "step 1"), False)  # the machine was suspended
    assert patience.lost(3600.0, (1, 3.0, "step 1"), False)


def test_a_stopped_process_is_lost_whatever_it_is_at():
    patience = Patience(least_s=2.0)
    told = [patience.lost(1.0, (1, math.inf, "at rest"), True) for _ in range(3)]
    assert told == ["", "", "at rest: stopped by a signal, for 3 s"]
    assert not patience.lost(1.0, (1, math.inf, "at rest"), False)  # it was let go on


def test_what_a_process_is_at_can_be_as_long_as_it_likes(board):
    board.write(1.0, "ä" * 1000)
    assert board.read()[2].startswith("ä" * 199)


LOOP = """
import sys
from raykb.runtime.storage import open_storage
from raykb.runtime.watch import Limits, watched
def wait_for_ever():
    while True:
        pass
with watched(Limits(least_s=0.5, first_s=0.5), open_storage(sys.argv[1]), "a/rank-0") as watch:
    watch.begin("step 7")
    wait_for_ever()
"""


def test_a_process_that_loops_for_ever_is_killed_and_its_stack_is_in_the_run_directory(tmp_path):
    done = subprocess.run([sys.executable, "-c", LOOP, tmp_path], capture_output=True, timeout=300)
    assert done.returncode == -9
    (told,) = hangs(LocalStorage(tmp_path), "a")
    assert "step 7 (the first): no sign of life within 0.5 s" in told
    assert "wait_for_ever" in told
    assert "wait_for_ever" in done.stderr.decode()


def test_the_sentinel_of_a_process_that_is_well_ends_with_its_work(tmp_path):
    with watched(Limits(), LocalStorage(tmp_path), "a/rank-0"):
        (child,) = sentinels()
    assert not sentinels()
    assert not Path("/proc", str(child)).exists()
    assert not (tmp_path / HUNG).exists()


def sentinels():
    """Return the sentinels of this process."""
    children = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    lines = children.stdout.splitlines()
    return [int(line.split()[0]) for line in lines if line.endswith("raykb.runtime.sentinel")]


@pytest.fixture(scope="module")
def undisturbed(local_ray, tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed"), workers=1)


def equal(one, other):
    one, other = one.state(), other.state()
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_a_stopped_worker_is_killed_and_its_training_ends_the_same(undisturbed, tmp_path):
    letters = []
    again = run(
        tmp_path, workers=1, fault="stop", marks=str(tmp_path), letters=letters, limits=SHORT
    )
    assert (tmp_path / "stop").exists()
    (told,) = hangs(LocalStorage(tmp_path), "tiny")
    assert "hung at step 14 (usually " in told
    assert "stopped by a signal" in told
    assert [letter.note for letter in letters if "hung at step 14" in letter.note]
    assert again.metrics == undisturbed.metrics
    assert equal(again, undisturbed)


@pytest.mark.slow
def test_a_loop_without_end_is_an_error_with_its_place_and_can_be_gone_on_with(
    undisturbed, tmp_path
):
    given = {"workers": 1, "fault": "loop", "marks": str(tmp_path), "limits": SHORT}
    with pytest.raises(Hung, match="tiny: hung 1 times") as caught:
        run(tmp_path, retries=0, **given)
    assert (tmp_path / "loop").exists()
    for piece in ("step 14", "no sign of life within 2 s", "in loop_for_ever", "(hung/tiny/"):
        assert piece in str(caught.value)
    again = run(tmp_path, **given)
    assert again.steps == STEPS
    assert equal(again, undisturbed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray Train's own
def test_a_group_with_a_rank_that_is_stopped_goes_on_and_ends_the_same(undisturbed, tmp_path):
    again = run(tmp_path, workers=2, fault="stop", marks=str(tmp_path), limits=SHORT)
    assert (tmp_path / "stop").exists()
    told = hangs(LocalStorage(tmp_path), "tiny")
    assert any("step 14" in each for each in told)
    steps = [int(mark.name.split("-")[3]) for mark in tmp_path.glob("0-of-2-*")]
    assert sorted(steps) == sorted([*range(14), *range(12, STEPS)])
    assert equal(again, undisturbed)
