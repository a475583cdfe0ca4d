"""The stream by Ray Data: what the DataLoader brings, in order, within its budget."""

import contextlib
import gc
import itertools
import json
import logging
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from shared_photographs import write_photographs
from torch import nn

from raykb.data.loader import LoaderStream
from raykb.data.parquet import write_shards
from raykb.data.strong import WeakStrong
from raykb.engine.loop import Training, Worker, fit
from raykb.engine.optim import cosine, scheduled, sgd, updater
from raykb.runtime import streams
from raykb.runtime.resources import WorkerResources
from raykb.runtime.storage import LocalStorage
from raykb.runtime.streams import STREAMS, RayStream
from raykb.runtime.train import train
from raykb.runtime.work import TrainJob

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.filterwarnings("ignore")]  # Ray's


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """60 photographs in 4 files."""
    return str(write_photographs(tmp_path_factory.mktemp("files"), 60, files=4, side=16))


def settings(paths, **arguments):
    return {"paths": paths, "batch_size": 12, "seed": 0, "view": WeakStrong()} | arguments


def take(source, count, start=0, rank=0, size=1):
    try:
        return list(itertools.islice(source.batches(start, rank, size), count))
    finally:
        source.close()


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(mine, theirs)
        for a, b in zip(one, other, strict=True)
        for mine, theirs in zip(a, b, strict=True)
    )


def all_cpus_are_free():
    gc.collect()  # tracebacks that pytest has kept hold actors of pipelines that failed
    end = time.monotonic() + 120
    while ray.available_resources().get("CPU", 0) < 4:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def whole(files):
    """What an uninterrupted DataLoader brings, over four epochs."""
    return take(LoaderStream(**settings(files)), 20)


def test_it_brings_what_the_loader_brings(files, whole):
    source = RayStream(**settings(files, workers=2, block_steps=3))
    assert same(take(source, 14), whole[:14])


def test_it_resumes_at_any_step_and_goes_on_for_ever(files, whole, monkeypatch):
    monkeypatch.setattr(streams, "_PIECES", 2)  # of one execution: three follow each other
    source = RayStream(**settings(files, workers=1, block_steps=2))
    assert same(take(source, 11, start=3), whole[3:14])


def test_it_ends_where_it_is_told_to_and_leaves_nothing_under_way(files, whole):
    source = RayStream(**settings(files, workers=1, block_steps=4))
    assert same(list(source.batches(3, stop=10)), whole[3:10])
    assert list(source.batches(10, stop=10)) == []
    assert same(list(source.batches(9, stop=10)), whole[9:10])
    all_cpus_are_free()


def test_two_ranks_at_a_time_see_what_one_sees(files, whole):
    sources = [RayStream(**settings(files, workers=1)) for _ in range(2)]
    running = [source.batches(2, rank, 2) for rank, source in enumerate(sources)]
    for expected, *halves in zip(whole[2:12], *running, strict=False):
        for mine, theirs in zip(expected, zip(*halves, strict=True), strict=True):
            assert torch.equal(mine, torch.cat(theirs))
    for source in sources:
        source.close()


def test_the_trainer_makes_the_same_views(files, whole):
    assert same(take(RayStream(**settings(files, views="trainer", workers=1)), 6), whole[:6])


def test_a_stream_travels_says_what_it_has_and_gives_it_back(files, whole):
    source = pickle.loads(pickle.dumps(RayStream(**settings(files, workers=2))))
    assert (source.count, source.steps_per_epoch, source.shape) == (60, 5, (3, 16, 16))
    batches = source.batches(0)
    steps = list(itertools.islice(batches, 6))
    assert ray.available_resources()["CPU"] <= 2
    assert source.figures().keys() == {
        "stream/images_per_s",
        "stream/broken_images",
        "stream/store_mib",
        "stream/spilled_mib",
    }
    assert source.figures()["stream/spilled_mib"] == 0
    source.close()
    source.close()
    with pytest.raises(StopIteration):
        next(batches)
    for step in steps:
        step.weak.add_(1).sub_(1)  # its own memory, not the object store's
    assert same(steps, whole[:6])
    all_cpus_are_free()


def test_the_table_has_both():
    assert {"ray": RayStream, "loader": LoaderStream} == STREAMS


# ---------------------------------------------------------------------- what goes wrong


def torn(folder, count=24, broken=(13,)):
    """Write files of 12, some images of which are broken."""
    good = write_photographs(folder, count, files=count // 12, side=8)
    for number, path in enumerate(sorted(good.iterdir())):
        table = pq.read_table(path).to_pandas()
        rows = [
            (int(row.id), b"torn" if number * 12 + at in broken else row.image, 0)
            for at, row in enumerate(table.itertuples())
        ]
        [written] = write_shards(folder / "part", rows, ["photograph"])
        written.rename(path)
    (folder / "part").rmdir()
    return str(folder)


def test_a_broken_image_is_replaced_and_counted(tmp_path, caplog):
    paths = torn(tmp_path)
    expected = take(LoaderStream(**settings(paths)), 8)
    caplog.clear()
    source = RayStream(**settings(paths, workers=1))
    with caplog.at_level(logging.WARNING, logger="raykb"):
        assert same(take(source, 8), expected)
    assert source.figures()["stream/broken_images"] == 1
    [message] = [m for m in caplog.messages if "row" in m]
    assert "00001.parquet, row 1: " in message


def test_a_broken_image_is_refused_with_file_and_row(tmp_path):
    source = RayStream(**settings(torn(tmp_path), batch_size=2, on_bad_image="raise", workers=1))
    with pytest.raises(ValueError, match=r"00001\.parquet, row 1: ") as caught:
        take(source, 12)
    assert type(caught.value) is ValueError


class Stuck(WeakStrong):
    """Views that take longer than anybody waits, but for the first step's."""

    def __call__(self, images, ids, seed, epoch):
        if ray.get_runtime_context().get_actor_id() is not None:
            time.sleep(16)
        return super().__call__(images, ids, seed, epoch)


class StuckAtOnce(WeakStrong):
    """Views that take longer than anybody waits."""

    def __call__(self, images, ids, seed, epoch):
        time.sleep(4)
        return super().__call__(images, ids, seed, epoch)


def test_a_first_step_that_makes_no_progress_is_given_up_as_well(files):
    source = RayStream(**settings(files, view=StuckAtOnce(), timeout_s=1, workers=1))
    with pytest.raises(TimeoutError, match=r"nothing for 1 s: of the cluster's 4 CPUs"):
        next(source.batches(0, stop=1))
    source.close()


def test_a_pipeline_that_makes_no_progress_is_given_up_and_says_why(files):
    source = RayStream(**settings(files, view=Stuck(), timeout_s=12, workers=1, block_steps=1))
    batches = source.batches(0)
    next(batches)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"nothing for 12 s: of the cluster's 4 CPUs \d.* free"):
        next(batches)
    assert time.monotonic() - began < 20
    source.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pipeline_that_is_ahead_keeps_to_its_budget_and_leaves_the_cpu(tmp_path, workers):
    paths = str(write_photographs(tmp_path / "files", 48, files=2, side=64))
    source = RayStream(
        **settings(paths, batch_size=24, workers=workers, store_mib=12, block_steps=2)
    )
    all_cpus_are_free()
    end = time.monotonic() + 120
    while (before := source.figures()["stream/store_mib"]) > 4:  # what others have left
        assert time.monotonic() < end
        time.sleep(0.1)
    with contextlib.closing(source):
        batches = source.batches(0)
        list(itertools.islice(batches, 6))
        end = time.monotonic() + 60
        while source.figures()["stream/store_mib"] - before <= 5:
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(3)  # the budget is full
        began = time.process_time()
        time.sleep(2)
        assert time.process_time() - began < 1.0  # 2 where Ray's loop does not rest
        assert source.figures()["stream/store_mib"] - before <= 12


def test_it_makes_progress_where_no_cpu_is_free(files, whole):
    class Trainer:
        def train(self, source):
            return take(source, 6)

    all_cpus_are_free()
    busy = ray.remote(num_cpus=4)(Trainer).remote()
    assert same(ray.get(busy.train.remote(RayStream(**settings(files)))), whole[:6])
    ray.kill(busy)


def test_a_step_that_does_not_fit_into_the_store_is_refused(files):
    source = RayStream(**settings(files, store_mib=0.05))
    with pytest.raises(ValueError, match=r"store_mib: 0\.05 MiB .*must be at least 0\.105"):
        source.batches(0)
    assert streams._Pipeline(RayStream(**settings(files, store_mib=0.5)), 0, 1).steps == 2
    with pytest.raises(ValueError, match="do not divide by 5 workers"):
        source.batches(0, 0, 5)


def test_trainings_side_by_side_share_the_store(files):
    half = ray.cluster_resources()["object_store_memory"] / 2
    step = 0.105 / 6  # MiB, by the test above
    crowd = int(half / 2**20 / (6 * step)) + 1
    with pytest.raises(ValueError, match="store_mib: "):
        RayStream(**settings(files, trainings=crowd)).batches(0)
    RayStream(**settings(files, trainings=crowd // 2)).batches(0)


def test_a_store_that_does_not_answer_costs_the_training_nothing(files, monkeypatch):
    source = RayStream(**settings(files))
    known = source.figures()
    assert "stream/store_mib" in known

    def lost(*_, **__):
        raise ConnectionError("the node is gone")

    monkeypatch.setattr(streams, "get_memory_info_reply", lost)
    monkeypatch.setattr(streams, "_LOOK_S", 0.0)
    assert source.figures() == known
    fresh = RayStream(**settings(files))
    assert "stream/store_mib" not in fresh.figures()
    assert "the object store does not answer" in fresh._reasons()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0, "worker_cpus": 0}, "workers: 0, must be .*, or null; worker_cpus: 0, must"),
        ({"block_steps": 0}, "block_steps: 0, must be at least 1"),
        ({"store_mib": 0}, "store_mib: 0, must be above 0"),
    ],
)
def test_wrong_settings_are_refused(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        RayStream(**settings(files, **arguments))


# ---------------------------------------------------------------------- in a training


def build(worker, source, fault):
    """Learn the mean of the weak views; note the ids that are seen."""
    model = nn.Linear(1, 1)
    optimizer = sgd(model, lr=0.05)

    def step(views, number):
        if fault is not None and number == 3 and worker.rank == 1:
            fault.touch()
            raise ArithmeticError("a bug in step 3")
        loss = (model(views.weak.float().mean().view(1, 1) / 255) - 1).square().sum()
        loss.backward()
        if worker.size > 1:
            for parameter in model.parameters():
                torch.distributed.all_reduce(parameter.grad)
        return {"loss": loss.detach()}

    return Training(
        step=step,
        update=updater(model.parameters(), optimizer, scheduled(optimizer, cosine(), steps=8)),
        batches=lambda start: source.batches(start, worker.rank, worker.size),
        steps=8,
        parts={"model": model, "optimizer": optimizer},
        evaluate=lambda: {"test/weight": float(model.weight)},
    )


def run(folder, source, workers, fault=None):
    """Return the losses of a training by Ray, which may leave a file ``fault`` and raise."""
    letters = []
    train(
        [TrainJob("seen", build, {"source": source, "fault": fault}, 0, log_every=1)],
        storage=LocalStorage(folder),
        resources=WorkerResources(workers=workers),
        parallel=1,
        on_letter=letters.append,
        on_result=lambda result: None,
    )
    return [letter.figures["train/loss"] for letter in letters if "train/loss" in letter.figures]


def test_a_training_by_ray_sees_what_one_at_home_sees(files, tmp_path):
    by_ray = run(tmp_path, RayStream(**settings(files, workers=1)), 1)
    torch.manual_seed(0)  # as the job's seed says
    by_loader = []
    fit(
        build(Worker(), LoaderStream(**settings(files)), None),
        log=lambda step, figures: by_loader.append(figures["train/loss"]),
        log_every=1,
    )
    assert len(by_ray) == 8
    assert by_ray == by_loader


def test_a_rank_that_raises_ends_the_training(files, tmp_path):
    fault = tmp_path / "fault"
    with pytest.raises(ArithmeticError, match="a bug in step 3"):
        run(tmp_path, RayStream(**settings(files)), 2, fault)
    assert time.time() - fault.stat().st_mtime < 60


# ---------------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_epochs_of_four_object_stores_take_no_more_and_more_memory(tmp_path):
    folder = str(write_photographs(tmp_path / "files", 6144, files=8))
    command = [sys.executable, Path(__file__).with_name("shared_soak.py"), folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stderr
    soak = json.loads(done.stdout.splitlines()[-1])
    assert soak["views_mib"] >= 4 * 80
    epochs = soak["epochs"]
    assert len(epochs) == 20
    assert max(epoch["stream/spilled_mib"] for epoch in epochs) == 0
    stores = [epoch["store_mib"] for epoch in epochs]
    assert 10 < max(stores) <= 40, stores  # half of the store is the budget
    # Ray's processes keep records of tasks: 0.02 MiB for each of the 64 blocks of an epoch
    for who, most in (("trainer_mib", 1), ("makers_mib", 1), ("rays_mib", 3)):
        slope = np.polyfit(range(5, 20), [epoch[who] for epoch in epochs[5:]], 1)[0]
        assert slope < most, (who, [round(epoch[who]) for epoch in epochs])
