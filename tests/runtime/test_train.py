"""Trainings on Ray: alone or shared, killed and taken up again, never run twice."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raykb.engine.loop import Training
from raykb.engine.objective import CrossEntropy, objective_step
from raykb.engine.optim import cosine, scheduled, sgd, updater
from raykb.runtime.resources import WorkerResources
from raykb.runtime.storage import LocalStorage
from raykb.runtime.train import finished, share, train
from raykb.runtime.work import FINAL, TrainJob

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

STEPS, BATCH = 24, 8


def build(worker, *, data, fault=None, marks=None):
    """A small training of which the batch of a step depends on the step alone."""
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))
    if worker.size > 1:
        model[1].p = 0.0  # ranks draw their own dropout, so it cannot equal one worker's
    optimizer = sgd(model, lr=0.1)
    scheduler = scheduled(optimizer, cosine(), steps=STEPS)
    trained = model if worker.size == 1 else DistributedDataParallel(model)

    def batches(start):
        for step in range(start, STEPS):
            if marks:
                Path(marks, f"{worker.rank}-{step}-{os.getpid()}").touch()
            if fault == "bug" and step == 13:
                raise ArithmeticError("a bug in step 13")
            if fault == "exit" and step == 13:
                sys.exit(3)
            if fault == "kill" and step == 13 and not Path(marks, "killed").exists():
                Path(marks, "killed").touch()
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)
            numbers = torch.Generator().manual_seed(step)
            rows = torch.randint(len(data), (BATCH,), generator=numbers)
            rows = rows[worker.rank :: worker.size]
            yield torch.from_numpy(data[rows.numpy()]), rows % 3

    return Training(
        step=objective_step(CrossEntropy(), trained),
        update=updater(model.parameters(), optimizer, scheduler),
        batches=batches,
        steps=STEPS,
        parts={"model": model, "optimizer": optimizer, "scheduler": scheduler},
        evaluate=lambda: {"test/weight": float(model[0].weight.sum())},
    )


@pytest.fixture(scope="module")
def data(local_ray):
    return share(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)).numpy())


def run(folder, jobs, *, workers=1, letters=None, results=None, **arguments):
    return train(
        jobs,
        storage=LocalStorage(folder),
        resources=WorkerResources(workers=workers),
        parallel=2,
        on_letter=(letters if letters is not None else []).append,
        on_result=(results if results is not None else []).append,
        **arguments,
    )


def job(name, data, seed=0, **own):
    return TrainJob(name, build, {"data": data} | own, seed, save_every=4, log_every=6)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    letters = []
    (result,) = run(folder, [job("a", data)], letters=letters)
    return folder, result, letters


def test_a_training_leaves_its_result_weights_and_letters(alone):
    folder, result, letters = alone
    assert result.metrics.keys() == {"test/weight"}
    assert result.steps == STEPS
    assert float(result.state()["0.weight"].sum()) == result.metrics["test/weight"]
    assert [letter.step for letter in letters] == [0, 6, 12, 18, 24]
    assert letters[0].figures.keys() == {"time/build_s"}
    assert all(letter.steps == STEPS for letter in letters)
    assert all("train/loss" in letter.figures for letter in letters[1:])
    assert (folder / "a" / FINAL).exists()


def test_same_seed_same_weights_under_any_name_and_another_seed_others(alone, data, tmp_path):
    _, result, _ = alone
    again, other = run(tmp_path, [job("paired/with-a", data), job("b", data, seed=1)])
    assert again.metrics == result.metrics
    assert other.metrics != result.metrics


def test_a_finished_training_is_not_run_again(alone, data):
    folder, result, _ = alone
    letters, results = [], []
    (again,) = run(folder, [job("a", data, fault="bug")], letters=letters, results=results)
    assert again == result == results[0] == finished(LocalStorage(folder), "a")
    assert letters == []


def test_killed_it_goes_on_from_its_checkpoint_and_ends_the_same(alone, data, tmp_path):
    _, result, _ = alone
    marks = tmp_path / "marks"
    marks.mkdir()
    (again,) = run(tmp_path, [job("a", data, fault="kill", marks=str(marks))])
    assert (marks / "killed").exists()
    assert again.metrics == result.metrics
    seen = sorted(int(mark.name.split("-")[1]) for mark in marks.glob("0-*"))
    assert seen == sorted([*range(14), *range(12, STEPS)])


def test_a_bug_is_raised_with_its_type_and_not_tried_again(data, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    with pytest.raises(ArithmeticError, match="a bug in step 13"):
        run(tmp_path, [job("a", data, fault="bug", marks=str(marks))])
    assert len(list(marks.glob("0-13-*"))) == 1


def test_an_exit_is_a_bug_of_the_training_and_no_lost_process(data, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    with pytest.raises(RuntimeError, match=r"the training called sys\.exit\(3\)"):
        run(tmp_path, [job("a", data, fault="exit", marks=str(marks))])
    assert len(list(marks.glob("0-13-*"))) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray Train's own
def test_two_workers_train_as_one_and_survive_a_kill(data, tmp_path):
    def without_dropout(worker, **arguments):
        training = build(worker, **arguments)
        training.parts["model"][1].p = 0.0
        return training

    one = TrainJob("one", without_dropout, {"data": data}, 0, save_every=4)
    (single,) = run(tmp_path, [one])
    marks = tmp_path / "marks"
    marks.mkdir()
    shared = {"data": data, "fault": "kill", "marks": str(marks)}
    two = TrainJob("one", build, shared, 0, save_every=4)
    (double,) = run(tmp_path / "two", [two], workers=2)
    assert (marks / "killed").exists()
    assert double.metrics["test/weight"] == pytest.approx(single.metrics["test/weight"], rel=1e-5)
    first = min(int(m.name.split("-")[1]) for m in marks.glob("1-*"))
    assert first == 0
    pids = {mark.name.split("-")[2] for mark in marks.glob("0-*")}
    assert len(pids) == 2
