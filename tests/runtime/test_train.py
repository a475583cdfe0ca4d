"""Trainings on Ray: alone or shared, killed and taken up again, never run twice."""

import dataclasses
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raykb.config import ConfigError
from raykb.engine.faults import notes
from raykb.engine.loop import Evaluated, Training
from raykb.engine.objective import CrossEntropy, LabelledBatch, Learner, Task, learning_step
from raykb.engine.optim import cosine, scheduled, sgd, updater
from raykb.runtime import mailbox as mailboxes
from raykb.runtime import train as trainings
from raykb.runtime.resources import ResourceError, WorkerResources
from raykb.runtime.run_files import FINAL
from raykb.runtime.signals import Interrupted, Stop, is_interrupt
from raykb.runtime.storage import LocalStorage
from raykb.runtime.train import call, finished, share, train
from raykb.runtime.work import TrainJob

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

STEPS, BATCH = 24, 8


def build(worker, *, data, fault=None, marks=None, evaluate_every=0):
    """A small training of which the batch of a step depends on the step alone."""
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))
    if worker.size > 1:
        model[1].p = 0.0  # ranks draw their own dropout, so it cannot equal one worker's
    optimizer = sgd(model, lr=0.1)
    scheduler = scheduled(optimizer, cosine(), steps=STEPS)
    learner = Learner(model, CrossEntropy(Task(model, STEPS, 3)))
    wrapped = learner if worker.size == 1 else DistributedDataParallel(learner)

    def batches(start):
        for step in range(start, STEPS):
            if marks:
                Path(marks, f"{worker.rank}-{step}-{os.getpid()}").touch()
            if fault == "bug" and step == 13:
                raise ArithmeticError("a bug in step 13")
            if fault == "wait" and step == 13:
                time.sleep(3600)
            if fault == "exit" and step == 13:
                sys.exit(3)
            if fault == "kill" and step == 13 and not Path(marks, "killed").exists():
                Path(marks, "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            numbers = torch.Generator().manual_seed(step)
            rows = torch.randint(len(data), (BATCH,), generator=numbers)
            rows = rows[worker.rank :: worker.size]
            scale = math.nan if fault == "nan" and step >= 13 else 1.0
            yield LabelledBatch(scale * torch.from_numpy(data[rows.numpy()]), rows % 3)

    def evaluate(split):
        weights = model[0].weight.detach()
        details = {"rows": weights.sum(1).tolist()} if split == "test" else {}
        return Evaluated({f"{split}/weight": float(weights.sum())}, details)

    return Training(
        step=learning_step(wrapped),
        update=updater(model.parameters(), optimizer, scheduler),
        batches=batches,
        steps=STEPS,
        parts={"model": model, "optimizer": optimizer, "scheduler": scheduler},
        evaluate=evaluate,
        save_every=4,
        log_every=6,
        evaluate_every=evaluate_every,
    )


@pytest.fixture(scope="module")
def data(local_ray):
    return share(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)).numpy())


def run(folder, jobs, *, letters=None, results=None, parallel=2, **arguments):
    return train(
        jobs,
        storage=LocalStorage(folder),
        parallel=parallel,
        on_letter=(letters if letters is not None else []).append,
        on_result=(results if results is not None else []).append,
        **arguments,
    )


def job(name, data, seed=0, *, workers=1, build=build, **own):
    return TrainJob(name, build, {"data": data} | own, seed, WorkerResources(workers=workers))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    letters = []
    (result,) = run(folder, [job("a", data, evaluate_every=12)], letters=letters)
    return folder, result, letters


def test_a_training_leaves_its_result_weights_and_letters(alone):
    folder, result, letters = alone
    assert result.metrics.keys() == {"test/weight"}
    assert result.steps == STEPS
    assert float(result.state()["0.weight"].sum()) == result.metrics["test/weight"]
    assert [letter.step for letter in letters] == [0, 6, 12, 12, 18, 24, 24]
    assert letters[0].figures.keys() == {"time/build_s"}
    assert all(letter.steps == STEPS for letter in letters)
    logged = [letter.step for letter in letters if "train/loss" in letter.figures]
    assert logged == [6, 12, 18, 24]
    assert (folder / "a" / FINAL).exists()


def test_what_goes_beyond_figures_is_kept_beside_them(alone):
    _, result, _ = alone
    assert result.details() == {"rows": result.state()["0.weight"].sum(1).tolist()}
    bare = dataclasses.replace(result, storage=result.storage.below("elsewhere"))
    assert bare.details() == {}


def test_evaluations_on_the_way_are_logged_as_such(alone):
    _, result, letters = alone
    found = {e.step: e.figures for e in letters if "valid/weight" in e.figures}
    assert found.keys() == {12, 24}
    assert found[24] == {"valid/weight": result.metrics["test/weight"]}
    assert found[12] != found[24]


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


def test_one_that_halts_is_gone_on_with_and_ends_as_if_it_had_not(alone, data, tmp_path):
    _, result, _ = alone
    marks = tmp_path / "marks"
    marks.mkdir()
    whole = job("a", data, marks=str(marks))
    first = dataclasses.replace(whole, until=10)  # which is between two checkpoints
    (halted,) = run(tmp_path, [first])
    assert halted.steps == 10
    assert halted.metrics != result.metrics
    assert not (tmp_path / "a" / FINAL).exists()
    assert run(tmp_path, [first]) == [halted]
    (ended,) = run(tmp_path, [whole])
    assert ended.metrics == result.metrics
    seen = sorted(int(mark.name.split("-")[1]) for mark in marks.glob("0-*"))
    assert seen == [*range(STEPS)]  # none twice


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


@pytest.mark.usefixtures("local_ray")
def test_what_a_function_raises_on_a_worker_is_raised_as_it_was():
    def refuse(source, *problems):
        raise ConfigError(source, problems)

    with pytest.raises(ConfigError) as told:
        call(refuse, "case 7", "image: is missing", "label: too", resources=WorkerResources())
    assert type(told.value) is ConfigError  # not one of Ray's with a traceback for its text
    assert told.value.problems == ("image: is missing", "label: too")


def test_an_exit_is_a_bug_of_the_training_and_no_lost_process(data, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    with pytest.raises(RuntimeError, match=r"the training called sys\.exit\(3\)"):
        run(tmp_path, [job("a", data, fault="exit", marks=str(marks))])
    assert len(list(marks.glob("0-13-*"))) == 1


def test_one_of_several_that_fails_leaves_a_hole_and_the_others_end(alone, data, tmp_path):
    _, result, _ = alone
    told, results = [], []
    jobs = [job("nan", data, fault="nan"), job("a", data), job("exit", data, fault="exit")]
    found = run(tmp_path, jobs, results=results, on_failure=lambda *failure: told.append(failure))
    assert [one and one.metrics for one in found] == [None, result.metrics, None]
    assert results == [found[1]]
    errors = {failed.name: error for failed, error in told}
    assert errors.keys() == {"nan", "exit"}
    assert type(errors["nan"]) is FloatingPointError
    assert "nan within the 6 steps up to 16" in str(errors["nan"])
    assert notes(errors["nan"]) == ["training 'nan', rank 0"]
    assert "sys.exit(3)" in str(errors["exit"])
    letters = []
    (again,) = run(tmp_path, [job("nan", data)], letters=letters)  # it goes on where it was good
    assert (letters[0].step, again.metrics) == (12, result.metrics)


def test_places_that_are_lost_under_way_end_the_trainings_that_wait_for_them(data, tmp_path):
    asked = []

    def places():
        asked.append(len(asked))
        if len(asked) > 3:
            raise ResourceError("nodes are gone")
        return 2

    job_without_place = dataclasses.replace(job("a", data), resources=WorkerResources(cpus=64))
    with pytest.raises(ResourceError, match="nodes are gone"):
        run(tmp_path, [job_without_place], parallel=places)
    assert len(asked) == 4


def test_a_mailbox_whose_process_is_stopped_is_begun_anew(local_ray, monkeypatch):
    mailbox = mailboxes.open_mailbox()
    letter = mailboxes.Letter("a", 1, 2, {})
    process = ray.get(mailbox.__ray_call__.remote(lambda self: os.getpid()))
    ray.get(mailbox.put.remote(letter))
    assert mailboxes.taken(mailbox) == [letter]
    os.kill(process, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(mailboxes, "_ANSWER_S", 0.5)
        assert mailboxes.may_go_on(mailbox, "a")
        assert mailboxes.taken(mailbox) == []
    assert ray.get(mailbox.__ray_call__.remote(lambda self: os.getpid())) != process
    ray.kill(mailbox)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray Train's own
def test_a_group_that_fails_leaves_a_hole_beside_one_that_ends(alone, data, tmp_path):
    _, result, _ = alone
    told = []
    jobs = [job("two", data, workers=2, fault="nan"), job("a", data)]
    found = run(tmp_path, jobs, on_failure=lambda *failure: told.append(failure))
    assert [one and one.metrics for one in found] == [None, result.metrics]
    ((failed, error),) = told
    assert (failed.name, type(error)) == ("two", FloatingPointError)
    assert notes(error)[-1] in ("training 'two', rank 0", "training 'two', rank 1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray Train's own
def test_two_workers_train_as_one_and_survive_a_kill(data, tmp_path):
    def without_dropout(worker, **arguments):
        training = build(worker, **arguments)
        training.parts["model"][1].p = 0.0
        return training

    (single,) = run(tmp_path, [job("one", data, build=without_dropout)])
    marks = tmp_path / "marks"
    marks.mkdir()
    two = job("one", data, workers=2, fault="kill", marks=str(marks))
    (double,) = run(tmp_path / "two", [two])
    assert (marks / "killed").exists()
    assert double.metrics["test/weight"] == pytest.approx(single.metrics["test/weight"], rel=1e-5)
    first = min(int(m.name.split("-")[1]) for m in marks.glob("1-*"))
    assert first == 0
    pids = {mark.name.split("-")[2] for mark in marks.glob("0-*")}
    assert len(pids) == 2


@pytest.mark.timeout(600)
def test_a_signal_ends_trainings_at_once_whatever_ray_makes_of_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "_GRACE_S", 3600.0)  # what a bug would give the others
    stop = Stop()

    def tell():
        while not list(tmp_path.glob("0-13-*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    holes = []
    with stop.handles(), pytest.raises((Interrupted, SystemError)) as raised:
        run(
            tmp_path,
            [job("a", data, fault="wait", marks=tmp_path)],
            on_failure=lambda job, error: holes.append(job),
        )
    assert is_interrupt(raised.value)
    assert holes == []
