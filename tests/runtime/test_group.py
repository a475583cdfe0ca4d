"""Trainings shared by several workers: in shares, killed, moved, ended by a bug."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import time

import pytest
import ray
import ray.cluster_utils
import shared_training
import torch
from shared_training import LAYERS, LIMIT_S, STEPS, build, run

from raykb.engine.faults import notes
from raykb.engine.loop import Worker, fit
from raykb.runtime import group as groups
from raykb.runtime import saving
from raykb.runtime.faults import WorkerTraceback
from raykb.runtime.resources import Group, Node, ResourceError, WorkerResources
from raykb.runtime.saving import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray Train's own


@pytest.fixture
def marks(tmp_path):
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.fixture(scope="module")
def alone(local_ray, tmp_path_factory):
    """The training by one worker: a single share."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(folder, workers=1)


def equal(one, other):
    one, other = one.state(), other.state()
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_one_share_leaves_the_whole_model_and_a_last_checkpoint(alone):
    folder, result = alone
    assert result.state().keys() == {f"{n}.{kind}" for n in range(4) for kind in ("weight", "bias")}
    names = sorted(path.name for path in (folder / "tiny").glob("step-*"))
    assert names == ["step-00000020", f"step-{STEPS:08d}"]


def test_a_large_model_is_not_put_together_unasked(alone, monkeypatch):
    _, result = alone
    worker = Checkpoints(result.storage, Worker(), lambda step: None)
    training = build(Worker())
    assert worker.whole_model(training).keys() == result.state().keys()
    monkeypatch.setattr(saving, "FINAL_BYTES", LAYERS * (9 + 3) * 4)
    assert worker.whole_model(training) is None
    monkeypatch.setattr(saving, "FINAL_BYTES", LAYERS * (9 + 3) * 4 + 1)
    assert worker.whole_model(training) is not None
    missing = dataclasses.replace(result, storage=result.storage.below("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"python pipelines/export_checkpoint\.py /"):
        missing.state()


@pytest.mark.slow
def test_two_workers_killed_go_on_from_their_checkpoint_and_end_as_one(alone, tmp_path, marks):
    _, single = alone
    double = run(tmp_path, workers=2, fault="kill", marks=str(marks))
    assert (marks / "killed").exists()
    assert double.metrics["test/weight"] == pytest.approx(single.metrics["test/weight"], abs=1e-12)
    assert equal(double, single)
    seen = sorted(int(mark.name.split("-")[3]) for mark in marks.glob("1-of-2-*"))
    assert seen == sorted([*range(14), *range(12, STEPS)])
    record = json.loads((tmp_path / "tiny" / f"step-{STEPS:08d}" / "manifest.json").read_text())
    assert [sorted(part["holds"]) for part in record["parts"]] == [
        [f"{n}.{kind}" for n in own for kind in ("bias", "weight")] for own in ((0, 1), (2, 3))
    ]


@pytest.fixture(scope="module")
def stopped(local_ray, tmp_path_factory):
    """What one worker, and what two, leave that a bug has stopped after step 12, and the bug."""

    @functools.cache
    def stop(workers):
        folder = tmp_path_factory.mktemp("stopped")
        with pytest.raises(ArithmeticError) as caught:
            run(folder, workers=workers, fault="bug", marks=str(folder))
        return folder, caught.value

    return stop


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "replicas"), [(1, 2, 1), (2, 1, 1), (2, 4, 2)])
def test_what_some_workers_saved_others_go_on_with(
    alone, stopped, tmp_path, before, after, replicas
):
    _, single = alone
    shutil.copytree(stopped(before)[0] / "tiny", tmp_path / "tiny")
    letters = []
    again = run(tmp_path, workers=after, letters=letters, replicas=replicas)
    assert [letter.step for letter in letters] == [12, 18, 24]
    assert equal(again, single)


@pytest.mark.slow
def test_a_damaged_share_sets_the_checkpoint_aside_for_every_worker(alone, stopped, tmp_path):
    _, single = alone
    shutil.copytree(stopped(2)[0] / "tiny", tmp_path / "tiny")
    part = tmp_path / "tiny" / "step-00000012" / "part-00001.pt"
    part.write_bytes(part.read_bytes()[:-1])
    letters = []
    again = run(tmp_path, workers=2, letters=letters)
    assert letters[0].step == 8
    assert (tmp_path / "tiny" / "step-00000012.corrupt").exists()
    assert equal(again, single)


@pytest.mark.slow
def test_a_bug_of_one_of_two_workers_is_raised_once_as_it_was(stopped):
    folder, error = stopped(2)
    assert len(list(folder.glob("raised-*"))) == 1  # it was not tried again
    assert type(error) is ArithmeticError
    assert str(error) == "a bug in step 13"
    assert notes(error) == ["stage 1, micro-batch 3, forward", "training 'tiny', rank 1"]
    assert isinstance(error.__cause__, WorkerTraceback)
    assert "failed to run forward" in str(error.__cause__)


def test_a_bug_that_pickle_does_not_bring_back_keeps_its_type(local_ray, tmp_path):
    with pytest.raises(Exception, match=r"^number 13 for a test") as caught:
        run(tmp_path, workers=1, fault="unpicklable", marks=str(tmp_path))
    assert caught.type.__name__ == "Unpicklable"


def test_places_that_will_not_come_are_refused_with_numbers(local_ray, monkeypatch):
    monkeypatch.setattr(groups, "_FEWER_WAIT_S", 0.1)
    each = WorkerResources(cpus=3, workers=3)
    with pytest.raises(ResourceError) as caught:
        groups.places("tiny", each, Group(wait_s=0.1, fewer=(2,)))
    assert str(caught.value).startswith(
        "tiny: needs 2 workers of 3 CPU and 0 GPU, and after 0.1 s there is 1 node with 4 CPU; "
    )


def test_the_largest_size_that_can_be_placed_is_taken(local_ray, monkeypatch):
    can_place = groups._can_place

    def patient(count, resources, group, wait_s):
        """Wait for what must come, however busy the machine is, and hardly for what cannot."""
        return can_place(count, resources, group, 60.0 if count <= 4 else 0.1)

    monkeypatch.setattr(groups, "_can_place", patient)
    each = WorkerResources(cpus=1, workers=8)
    assert groups.places("tiny", each, Group(fewer=(1, 2, 6, 4))) == 4
    assert groups.places("tiny", WorkerResources(workers=3), Group(place="spread")) == 3


def test_places_that_others_hold_are_waited_for(monkeypatch):
    answers = iter([False, False, True])
    monkeypatch.setattr(groups, "_can_place", lambda *arguments: next(answers))
    monkeypatch.setattr(groups, "cluster", lambda: [Node(2, 0)])
    assert groups.places("tiny", WorkerResources(workers=2), Group()) == 2


@pytest.fixture
def two_nodes():
    """A cluster of two nodes with one CPU each, beside the session's local Ray."""
    cluster = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    lost = cluster.add_node(num_cpus=1)
    yield cluster, lost
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_with_a_node_lost_it_goes_on_with_the_workers_that_are_left(two_nodes, tmp_path, marks):
    cluster, lost = two_nodes
    group = {"place": "spread", "wait_s": 5.0, "timeout_s": 30, "fewer": [1]}
    arguments = {"marks": str(marks), "fault": "hang"}
    options = ["--group", json.dumps(group), "--arguments", json.dumps(arguments)]
    driver = subprocess.Popen(
        [
            sys.executable,
            shared_training.__file__,
            tmp_path,
            "--address",
            cluster.address,
            *options,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + LIMIT_S
        while not (marks / "hung").exists():
            assert time.monotonic() < end
            assert driver.poll() is None
            time.sleep(0.1)
        cluster.remove_node(lost, allow_graceful=False)
        output, _ = driver.communicate(timeout=LIMIT_S)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 0
    found = json.loads(output.splitlines()[-1])
    assert found["workers"] == [2.0, 1.0]
    steps = [int(mark.name.split("-")[3]) for mark in marks.glob("0-of-1-*")]
    assert min(steps) == 12  # the last checkpoint of the two
    alone = build(Worker())
    fit(alone, log=lambda step, figures: None)
    weight = alone.evaluate("test").figures["test/weight"]
    assert found["metrics"]["test/weight"] == pytest.approx(weight, abs=1e-12)
