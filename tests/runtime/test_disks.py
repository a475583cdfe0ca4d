"""A disk that fills up or turns read-only in the middle of a run, and one that is well again.

The disks are real ones, small and in memory, so these tests are root's.
"""

import dataclasses
import os
import re
import subprocess
import time
import types
from pathlib import Path

import here
import pytest
import shared_training
from databases import new_database

from raykb.engine import checkpoint
from raykb.runtime import job, retrying
from raykb.runtime.checking import check
from raykb.runtime.left import uri_of
from raykb.runtime.resources import Phase, WorkerResources
from raykb.runtime.retrying import PATIENCE, StorageError
from raykb.runtime.spool import Spool
from raykb.runtime.storage import LocalStorage
from raykb.runtime.train import finished
from raykb.runtime.work import TrainJob

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning")


class Disk:
    """A disk of 512 KiB that can be filled and be made read-only."""

    def __init__(self, folder):
        self.folder = folder

    def _mount(self, *arguments):
        command = ["mount", *map(str, arguments), str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True)

    def attach(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self._mount("-t", "tmpfs", "-o", "size=512k", "tmpfs")
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")

    def detach(self):
        subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True)

    def fill(self):
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            while os.statvfs(self.folder).f_bavail:
                file.write(b"0" * 4096)

    def make_room(self):
        (self.folder / "ballast").unlink()

    def protect(self, protected=True):
        done = self._mount("-o", f"remount,{'ro' if protected else 'rw'}")
        assert not done.returncode, done.stderr


@pytest.fixture
def disk(tmp_path):
    if os.geteuid():
        pytest.skip("only root can mount a disk")
    made = Disk(tmp_path / "disk")
    yield made
    made.detach()


def save(storage, step):
    part = checkpoint.write_part(storage, {"step": step, "weights": [0] * 9999}, step=step)
    checkpoint.commit(storage, [part], step=step)


def test_on_a_full_disk_the_last_checkpoint_is_whole_and_the_error_says_path_and_room(disk):
    disk.attach()
    storage = LocalStorage(disk.folder)
    save(storage, 1)
    disk.fill()
    told = rf"No space left on device \(0 bytes are free\): '{disk.folder}/step-00000002/part"
    with pytest.raises(StorageError, match=told):
        save(storage, 2)
    with pytest.raises(StorageError, match=rf"\(0 bytes are free\): '{disk.folder}/log'"):
        storage.append("log", {"number": 0})
    assert checkpoint.decode(checkpoint.newest(storage)[0])["step"] == 1
    assert storage.temporaries() == []
    disk.make_room()
    save(storage, 2)
    storage.append("log", {"number": 0})
    assert checkpoint.decode(checkpoint.newest(storage)[0])["step"] == 2
    assert [record["number"] for record in storage.records("log")] == [0]


def nothing(): ...


def build(worker, *, begin, fault):
    """A tiny training to which something happens at step 10, after its checkpoint of step 8."""
    begin()
    training = shared_training.build(worker)

    def batches(start):
        for step, batch in enumerate(training.batches(start), start):
            if step == 10:
                fault()
            yield batch

    return dataclasses.replace(training, batches=batches)


def trained(begin=nothing, fault=nothing):
    return TrainJob("tiny", build, {"begin": begin, "fault": fault}, 0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The figures of a run to which nothing happens."""
    storage = LocalStorage(tmp_path_factory.mktemp("undisturbed"))
    (result,) = here.train(
        [trained()],
        storage=storage,
        parallel=1,
        on_letter=lambda letter: None,
        on_result=lambda result: None,
    )
    return result.metrics


@pytest.fixture
def launch(tmp_path, monkeypatch, local_ray):
    """Launch a run, in this process, of one training with a fault; its store is on another disk."""
    monkeypatch.chdir(tmp_path)
    new_database(tmp_path)
    Path("config.yaml").write_text("storage: runs\ntracking: {uri: null}\n")
    ready = types.SimpleNamespace(phases=[Phase("tiny", 1, WorkerResources())])

    def launch(*argv, **happens):
        def script(session, ready):
            session.train("tiny", [trained(**happens)])

        return job.launch(
            here.on(here.HERE, script),
            description="",
            default=Path("config.yaml"),
            schema={},
            prepare=lambda config: ready,
            argv=list(map(str, argv)),
        )

    return launch


def left_by_its_tracker(run):
    """Wait for a tracker that could not send all to give up, which else ends with its process."""
    end = time.monotonic() + 120
    while True:
        try:
            Spool(run / "tracking").close()
            return
        except RuntimeError:
            assert time.monotonic() < end
            time.sleep(0.1)


def ended_well(run, undisturbed):
    storage = LocalStorage(run)
    assert finished(storage, "tiny").metrics == undisturbed
    assert check(storage, tracking_uri=uri_of(storage)) == []


def test_a_run_on_a_full_disk_ends_with_words_and_goes_on_once_there_is_room(
    disk, launch, undisturbed, capsys
):
    disk.attach()
    run = disk.folder / "run"
    assert launch("--out", run, fault=disk.fill) == job.EXIT_FAILED
    said = capsys.readouterr().err
    where = re.escape(f"'{run}/tiny/step-00000012/part-00000.pt'")
    assert re.search(rf"No space left on device \([\d,]+ bytes are free\): {where}", said)
    assert f"--resume {run}" in said
    assert "Traceback" not in said
    newest = checkpoint.newest(LocalStorage(run / "tiny"))
    assert checkpoint.decode(newest[0])["step"] == 8
    disk.make_room()
    left_by_its_tracker(run)
    assert launch("--resume", run) == 0
    assert "tiny: goes on after step 8" in capsys.readouterr().err
    ended_well(run, undisturbed)


def test_a_disk_that_turns_read_only_ends_the_run_with_words_and_it_goes_on_once_it_is_not(
    disk, launch, undisturbed, monkeypatch, tmp_path, capsys
):
    run = tmp_path / "run"
    disk.folder = run / "tiny"
    monkeypatch.setenv(PATIENCE, "0.6")
    assert launch("--out", run, begin=disk.attach, fault=disk.protect) == job.EXIT_FAILED
    said = capsys.readouterr().err
    where = re.escape(f"'{run}/tiny/step-00000012/part-00000.pt'")
    assert re.search(rf"Read-only file system \(tried [23] times in \d s\) \(.*: {where}", said)
    assert f"--resume {run}" in said
    newest = checkpoint.newest(LocalStorage(run / "tiny"))
    assert checkpoint.decode(newest[0])["step"] == 8
    disk.protect(False)
    assert launch("--resume", run) == 0
    ended_well(run, undisturbed)


def test_a_disk_that_is_read_only_for_a_while_costs_pauses_alone(
    disk, launch, undisturbed, monkeypatch, tmp_path, capsys
):
    run, pauses = tmp_path / "run", []
    disk.folder = run / "tiny"

    def pause(place, number):
        pauses.append(place)
        disk.protect(number < 2)
        return 0.01

    monkeypatch.setattr(retrying, "pause_s", pause)
    assert launch("--out", run, begin=disk.attach, fault=disk.protect) == 0
    assert pauses == [f"{run}/tiny/step-00000012/part-00000.pt"] * 3
    ended_well(run, undisturbed)
