"""The feed by Ray Data: what one in place brings, in order, within its budget."""

import contextlib
import functools
import gc
import itertools
import json
import logging
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import shared_series
import torch
from scipy.stats import theilslopes
from shared_photographs import write_photographs
from shared_series import joined, same, series, take
from torch import nn

from raykb.data.feed import InPlace
from raykb.data.image_views import WeakStrongView
from raykb.data.loader import Loader
from raykb.data.order import ByShard, Shuffled
from raykb.data.parquet import write_shards
from raykb.data.strong import WeakStrong
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import CropFlipView
from raykb.engine.loop import Evaluated, Training, Worker, fit
from raykb.engine.optim import cosine, scheduled, sgd, updater
from raykb.runtime import streams
from raykb.runtime.resources import WorkerResources
from raykb.runtime.storage import LocalStorage
from raykb.runtime.streams import TRANSPORTS, RayData
from raykb.runtime.train import train
from raykb.runtime.work import TrainJob

for module in (sys.modules[__name__], shared_series):  # workers cannot import tests
    ray.cloudpickle.register_pickle_by_value(module)

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.filterwarnings("ignore")]  # Ray's
FORM = CropFlipView(mean=[0.3], std=[0.4])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """60 photographs in 4 files."""
    return str(write_photographs(tmp_path_factory.mktemp("files"), 60, files=4, side=16))


def source(paths, batch_size=12, pair=None, **settings):
    """Return a source of unlabelled photographs."""
    unlabelled = UnlabelledImages(paths=paths, ratio=1, **settings)
    view = WeakStrongView(pair or WeakStrong(), FORM)
    return unlabelled.source(unlabelled.examples(0), view, batch_size, 0)


def all_cpus_are_free():
    gc.collect()  # tracebacks that pytest has kept hold actors of pipelines that failed
    end = time.monotonic() + 120
    while ray.available_resources().get("CPU", 0) < 4:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def whole(files):
    """What an uninterrupted feed brings, over three epochs."""
    return take(InPlace(source(files)), 15)


@pytest.mark.parametrize("executions", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_it_resumes_at_any_step_and_goes_on_for_ever_and_knows_no_images(monkeypatch, executions):
    """Of curves, whose fields differ in type and number of axes, in batches of unequal size."""
    monkeypatch.setattr(streams, "_PIECES", 2)  # of one execution, of two steps each
    order = functools.partial(Shuffled, keep_last=True)
    curves = series(order=order, views_by="trainer")
    feed = RayData(curves, workers=1, block_steps=2)
    count = 1 + 4 * (executions - 1) + 1  # the first is made here, and the last one is begun
    assert same(take(feed, count, start=3), take(InPlace(curves), count, start=3))


def test_two_ranks_see_what_one_sees_end_where_they_are_told_to_and_leave_nothing(files, whole):
    feeds = [RayData(source(files), workers=1, block_steps=4) for _ in range(2)]
    running = [feed.batches(2, Worker(rank, 2), 12) for rank, feed in enumerate(feeds)]
    assert same(joined(zip(*zip(*running, strict=True), strict=True)), whole[2:12])
    assert list(feeds[0].batches(12, Worker(), 12)) == []
    assert same(list(feeds[0].batches(9, Worker(), 10)), whole[9:10])
    all_cpus_are_free()


@pytest.mark.slow  # as all others are, of images
def test_whole_shards_are_brought_in_their_order():
    curves = series(
        order=lambda count, size, seed: ByShard([5, 15], batch_size=size, seed=seed),
        views_by="workers",
    )
    feed = RayData(curves, workers=1, block_steps=3)
    assert same(take(feed, 9, start=2), take(InPlace(curves), 9, start=2))


def test_it_travels_brings_what_others_bring_and_gives_back_what_it_has(files, whole):
    feed = pickle.loads(pickle.dumps(RayData(source(files), workers=2, block_steps=3)))
    batches = feed.batches(0, Worker())
    steps = list(itertools.islice(batches, 14))
    assert ray.available_resources()["CPU"] <= 2
    assert feed.figures().keys() == {
        "stream/rows_per_s",
        "stream/broken_rows",
        "stream/store_mib",
        "stream/spilled_mib",
    }
    assert feed.figures()["stream/spilled_mib"] == 0
    feed.close()
    feed.close()
    with pytest.raises(StopIteration):
        next(batches)
    for step in steps:
        step["ids"].add_(1).sub_(1)  # its own memory, not the object store's
    assert same(steps, whole[:14])
    all_cpus_are_free()


def test_the_table_has_every_transport():
    assert {"ray": RayData, "loader": Loader, "in_place": InPlace} == TRANSPORTS


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
    expected = take(InPlace(source(paths)), 8)
    caplog.clear()
    told = []
    feed = RayData(source(paths), workers=1, tell=lambda *found: told.append(found))
    with caplog.at_level(logging.WARNING, logger="raykb"):
        assert same(take(feed, 8), expected)
    assert feed.figures()["stream/broken_rows"] == 1
    [message] = [m for m in caplog.messages if "row" in m]
    [(rank, problem)] = told
    assert rank == 0
    assert "00001.parquet, row 1: " in problem
    assert message.startswith(problem)


def test_a_broken_image_is_refused_with_file_and_row(tmp_path):
    feed = RayData(source(torn(tmp_path), 2, on_bad_image="raise"), workers=1)
    with pytest.raises(ValueError, match=r"00001\.parquet, row 1: ") as caught:
        take(feed, 12)
    assert type(caught.value) is ValueError


class Stuck(WeakStrong):
    """Views that take until a file is there, but for those that are made here."""

    def __init__(self, file):
        super().__init__()
        self.__dict__["file"] = file

    def __call__(self, images, ids, seed, epoch):
        if ray.get_runtime_context().get_actor_id() is not None:
            while not self.file.exists():
                time.sleep(0.05)
        return super().__call__(images, ids, seed, epoch)


class StuckAtOnce(WeakStrong):
    """Views of so many images that take longer than anybody waits."""

    def __init__(self, images):
        super().__init__()
        self.__dict__["images"] = images

    def __call__(self, images, ids, seed, epoch):
        if len(images) >= self.images:
            time.sleep(4)
        return super().__call__(images, ids, seed, epoch)


def test_a_trial_that_makes_no_progress_is_given_up(files):
    feed = RayData(source(files, pair=StuckAtOnce(1)), timeout_s=1, workers=1)
    with pytest.raises(TimeoutError, match=r"nothing for 1 s: of the cluster's 4 CPUs"):
        feed.batches(0, Worker(), 1)


def test_a_first_step_that_makes_no_progress_is_given_up_as_well(files):
    feed = RayData(source(files, pair=StuckAtOnce(12)), timeout_s=1, workers=1)
    batches = feed.batches(0, Worker(), 1)
    with pytest.raises(TimeoutError, match=r"nothing for 1 s: of the cluster's 4 CPUs"):
        next(batches)
    feed.close()


def test_a_pipeline_that_makes_no_progress_is_given_up_and_says_why(files, tmp_path):
    file = tmp_path / "go on"
    feed = RayData(source(files, pair=Stuck(file)), workers=1, block_steps=1)
    batches = feed.batches(0, Worker())
    next(batches)
    feed.timeout_s = 1.0  # from the second step on, which never comes
    try:
        with pytest.raises(
            TimeoutError, match=r"nothing for 1 s: of the cluster's 4 CPUs \d.* free"
        ):
            next(batches)
    finally:
        file.touch()  # so that its processes end now, and not in the midst of the next test
        feed.close()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_pipeline_that_is_ahead_keeps_to_its_budget_and_leaves_the_cpu(tmp_path, workers):
    paths = str(write_photographs(tmp_path / "files", 48, files=2, side=64))
    images = source(paths, 24, views_by="trainer")  # so that to fill the store costs no views
    feed = RayData(images, workers=workers, store_mib=12, block_steps=2)
    all_cpus_are_free()
    end = time.monotonic() + 120
    while (before := feed.figures()["stream/store_mib"]) > 4:  # what others have left
        assert time.monotonic() < end
        time.sleep(0.1)
    with contextlib.closing(feed):
        batches = feed.batches(0, Worker())
        list(itertools.islice(batches, 6))
        end = time.monotonic() + 60
        while feed.figures()["stream/store_mib"] - before <= 5:
            assert time.monotonic() < end
            time.sleep(0.1)
        held = []
        while len(set(held[-3:])) != 1 or len(held) < 3:  # until the budget is full, and all rests
            assert time.monotonic() < end
            time.sleep(0.5)
            held.append(feed.figures()["stream/store_mib"])
        began = time.process_time()
        time.sleep(2)
        assert time.process_time() - began < 1.0  # 2 where Ray's loop does not rest
        assert feed.figures()["stream/store_mib"] - before <= 12


def test_it_makes_progress_where_no_cpu_is_free(files, whole):
    class Trainer:
        def __init__(self):
            streams._SETTLE_S = 0.0  # in its own process: it holds what would have to come free

        def train(self, feed):
            return take(feed, 6)

    all_cpus_are_free()
    busy = ray.remote(num_cpus=4)(Trainer).remote()
    assert same(ray.get(busy.train.remote(RayData(source(files)))), whole[:6])
    ray.kill(busy)


# 12 rows of a weak and a strong view, of an id in the batch and one beside it, and of an epoch
STEP_BYTES = 12 * (2 * 3 * 16 * 16 + 3 * 8)


def test_a_step_that_does_not_fit_into_the_store_is_refused(files):
    feed = RayData(source(files), store_mib=0.05)
    least = rf"{streams._FEWEST * STEP_BYTES / 2**20:.3g}"
    with pytest.raises(ValueError, match=rf"store_mib: 0\.05 MiB .*must be at least {least}"):
        feed.batches(0, Worker())
    assert streams._Pipeline(RayData(source(files), store_mib=0.5), 0, 1, STEP_BYTES).steps == 2
    with pytest.raises(ValueError, match="do not divide by 5 workers"):
        feed.batches(0, Worker(0, 5))


def test_trainings_side_by_side_share_the_store(files):
    half = ray.cluster_resources()["object_store_memory"] / 2
    crowd = int(half / (streams._FEWEST * STEP_BYTES)) + 1
    with pytest.raises(ValueError, match="store_mib: "):
        RayData(source(files), trainings=crowd).batches(0, Worker())
    RayData(source(files), trainings=crowd // 2).batches(0, Worker())


def test_a_store_that_does_not_answer_costs_the_training_nothing(monkeypatch):
    feed = RayData(series())
    known = feed.figures()
    assert "stream/store_mib" in known

    def lost(*_, **__):
        raise ConnectionError("the node is gone")

    monkeypatch.setattr(streams, "get_memory_info_reply", lost)
    monkeypatch.setattr(streams, "_LOOK_S", 0.0)
    assert feed.figures() == known
    fresh = RayData(series())
    assert "stream/store_mib" not in fresh.figures()
    assert "the object store does not answer" in fresh._reasons()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0, "worker_cpus": 0}, "workers: 0, must be .*, or null; worker_cpus: 0, must"),
        ({"block_steps": 0}, "block_steps: 0, must be at least 1"),
        ({"store_mib": 0, "timeout_s": 0}, "store_mib: 0, must be above 0; timeout_s: 0, must be"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RayData(series(), **arguments)


# ---------------------------------------------------------------------- in a training


def build(worker, feed, fault):
    """Learn the mean of the weak views; note the ids that are seen."""
    model = nn.Linear(1, 1)
    optimizer = sgd(model, lr=0.05)

    def step(batch, number):
        if fault is not None and number == 0 and worker.rank == 1:
            fault.touch()
            raise ArithmeticError("a bug in the first step")
        loss = (model(batch["weak"].mean().view(1, 1)) - 1).square().sum()
        loss.backward()
        if worker.size > 1:
            for parameter in model.parameters():
                torch.distributed.all_reduce(parameter.grad)
        return {"loss": loss.detach()}

    return Training(
        step=step,
        update=updater(model.parameters(), optimizer, scheduled(optimizer, cosine(), steps=8)),
        batches=lambda start: feed.batches(start, worker),
        steps=8,
        parts={"model": model, "optimizer": optimizer},
        evaluate=lambda split: Evaluated({f"{split}/weight": float(model.weight)}),
        log_every=1,
    )


def run(folder, feed, workers, fault=None):
    """Return the losses of a training by Ray, which may leave a file ``fault`` and raise."""
    letters = []
    each = WorkerResources(workers=workers)
    train(
        [TrainJob("seen", build, {"feed": feed, "fault": fault}, 0, each)],
        storage=LocalStorage(folder),
        parallel=1,
        on_letter=letters.append,
        on_result=lambda result: None,
    )
    return [letter.figures["train/loss"] for letter in letters if "train/loss" in letter.figures]


@pytest.mark.slow  # to the bit of its weights: test_semi_train.py, killed with Ray's stream
def test_a_training_by_ray_sees_what_one_at_home_sees(files, tmp_path):
    by_ray = run(tmp_path, RayData(source(files), workers=1), 1)
    torch.manual_seed(0)  # as the job's seed says
    in_place = []
    fit(
        build(Worker(), InPlace(source(files)), None),
        log=lambda step, figures: in_place.append(figures["train/loss"]),
    )
    assert len(by_ray) == 8
    assert by_ray == in_place


@pytest.mark.slow
def test_a_rank_that_raises_ends_the_training(files, tmp_path):
    fault = tmp_path / "fault"
    with pytest.raises(ArithmeticError, match="a bug in the first step"):
        run(tmp_path, RayData(source(files), workers=1), 2, fault)
    assert fault.exists()


# ---------------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_epochs_of_four_object_stores_take_no_more_and_more_memory(tmp_path):
    folder = str(write_photographs(tmp_path / "files", 3072, files=8))
    command = [sys.executable, Path(__file__).with_name("shared_soak.py"), folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stderr
    soak = json.loads(done.stdout.splitlines()[-1])
    assert soak["steps"] * soak["step_mib"] >= 4 * 80
    epochs = soak["epochs"]
    assert len(epochs) == 20
    assert max(epoch["stream/spilled_mib"] for epoch in epochs) == 0
    stores = [epoch["store_mib"] for epoch in epochs]
    assert 10 < max(stores) <= 40, stores  # half of the store is the budget
    # Ray notes something of each task: they grow by 0.3, 0.5 and 2 MiB an epoch. One batch that is
    # kept in each epoch is 20 MiB in the trainer, of numbers, and 5 elsewhere, of bytes. Those that
    # make views are others from the seventeenth epoch on, where Ray Data begins anew.
    for who, judged, most in (("trainer", 20, 1.0), ("makers", 15, 2.5), ("rays", 20, 4.0)):
        taken = [epoch[f"{who}_mib"] for epoch in epochs]
        slope = theilslopes(taken[5:judged]).slope  # a single odd epoch does not turn it
        assert slope < most, (who, slope, [round(mib) for mib in taken])
