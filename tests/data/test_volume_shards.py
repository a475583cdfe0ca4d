"""Shards: a case decompressed once, whoever asks, and made anew when what it is made of changes."""

import os
import pickle

import numpy as np
import pytest
import torch.distributed as dist
from shared_volumes import SHAPE, geometry, labels, numbered, write_task

from raykb.config import ConfigError
from raykb.data import volume_shards
from raykb.data.decathlon import read_case, read_task
from raykb.data.nifti import write_nifti
from raykb.data.volume_shards import Contents, Preparation, store_case


@pytest.fixture
def task(tmp_path):
    return read_task(write_task(tmp_path / "task", channels=2))


@pytest.fixture
def reads(monkeypatch):
    """Names of the cases whose files are read."""
    names = []

    def noted(task, case):
        names.append(case.name)
        return read_case(task, case)

    monkeypatch.setattr(volume_shards, "read_case", noted)
    return names


def test_a_shard_holds_what_the_files_do(task, tmp_path):
    case = store_case(task, task.training[1], tmp_path / "shards")
    data = read_case(task, task.training[1])
    assert isinstance(case.image, np.memmap)
    assert isinstance(case.label, np.memmap)
    assert (case.image.dtype, case.label.dtype, case.dtype) == (np.int16, np.uint8, np.int16)
    assert np.array_equal(case.image, data.image)
    assert np.array_equal(case.label, data.label)
    assert (case.name, case.shape, case.channels) == ("case_1", SHAPE, 2)
    assert case.labelled
    assert case.spacing_mm == data.geometry.spacing_mm
    assert case.geometry.file_shape == data.geometry.file_shape
    assert np.array_equal(case.geometry.affine, data.geometry.affine)


def test_a_case_without_a_label_has_none(task, tmp_path):
    case = store_case(task, task.test[0], tmp_path)
    assert np.array_equal(case.image, read_case(task, task.test[0]).image)
    assert (case.labelled, case.positions, len(case.foreground)) == (False, {}, 0)
    with pytest.raises(FileNotFoundError):
        _ = case.label


def test_foreground_is_where_the_label_is_some_of_it_where_there_is_much(
    task, tmp_path, monkeypatch
):
    def found(folder):
        case = store_case(task, task.training[0], tmp_path / folder)
        places = case.foreground
        assert np.array_equal(places[:, 0], labels()[tuple(places[:, 1:].T)])
        assert np.array_equal(places[:, 0], np.sort(places[:, 0]))
        return case.positions, {tuple(place) for place in places.tolist()}

    label = labels()
    label[2:5] = 1
    write_nifti(task.training[0].label, label, geometry())
    monkeypatch.setattr("test_volume_shards.labels", lambda: label)
    positions, all_of_them = found("all")
    assert positions == {1: (label == 1).sum(), 2: (label == 2).sum()}
    assert len(all_of_them) == (label > 0).sum()
    monkeypatch.setattr(volume_shards, "_POSITIONS", 50)
    positions, some = found("some")
    assert positions == {1: 50, 2: (label == 2).sum()}
    assert len(some) == sum(positions.values())
    assert some < all_of_them
    assert some == found("some again")[1]


def test_a_case_travels_without_its_voxels(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = store_case(task, task.training[0], tmp_path.relative_to(tmp_path))
    _ = case.image
    monkeypatch.chdir("/")
    there = pickle.loads(pickle.dumps(case))
    assert len(pickle.dumps(case)) < 1500
    assert np.array_equal(there.image, case.image)


def test_a_shard_is_made_once_and_anew_when_a_file_or_a_table_changes(task, tmp_path, reads):
    def folder(of=task):
        return store_case(of, of.training[0], tmp_path / "shards").folder

    first = folder()
    assert folder() == first
    assert reads == ["case_0"]
    os.utime(task.training[0].label, ns=(1, 1))
    second = folder()
    write_nifti(task.training[0].image, np.stack([numbered()[1:]] * 2), geometry((8, *SHAPE[1:])))
    write_nifti(task.training[0].label, labels()[1:], geometry((8, *SHAPE[1:])))
    third = folder()
    write_task(task.folder, channels=2, labels={"0": "air", "1": "organ", "2": "lesion", "3": "x"})
    fourth = folder(read_task(task.folder))
    assert len({first, second, third, fourth}) == 4
    assert reads == ["case_0"] * 4
    assert np.load(third / "image.npy").shape == (2, 8, *SHAPE[1:])


def test_a_preparation_is_part_of_what_a_shard_is(task, tmp_path, reads):
    def halved(contents):
        image = contents.image[..., ::2].astype(np.float32) / 2
        z, y, x = contents.spacing_mm
        return Contents(image, contents.label[..., ::2], (z, y, 2 * x))

    def stored(key, prepare=halved):
        preparation = Preparation(prepare=prepare, key=key)
        return store_case(task, task.training[0], tmp_path, preparation=preparation)

    plain, case = store_case(task, task.training[0], tmp_path), stored("half")
    assert np.array_equal(case.image, plain.image[..., ::2] / np.float32(2))
    assert np.array_equal(case.label, plain.label[..., ::2])
    assert (case.dtype, case.shape) == (np.float32, (9, 11, 7))
    assert case.spacing_mm == (*plain.spacing_mm[:2], 2 * plain.spacing_mm[2])
    assert case.geometry.shape == SHAPE  # of the file, to go back to
    assert stored("half").folder == case.folder != plain.folder
    assert stored("as it is", lambda contents: contents).folder not in (case.folder, plain.folder)
    assert reads == ["case_0"] * 3


def test_what_fails_leaves_nothing_and_what_was_killed_is_made_again(task, tmp_path):
    shards = tmp_path / "shards"
    folder = store_case(task, task.training[0], shards).folder
    folder.rename(folder.with_name(f".{folder.name}.partial"))  # as if killed before the rename
    (folder.with_name(f".{folder.name}.partial") / "other").write_text("half of it")
    assert store_case(task, task.training[0], shards).folder == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "case.json",
        "foreground.npy",
        "image.npy",
        "label.npy",
    ]
    task.training[1].image.unlink()
    with pytest.raises(ConfigError, match=r"case case_1: 1 problem\n  - image: .*is missing"):
        store_case(task, task.training[1], shards)
    assert [path.name for path in shards.iterdir() if path.is_dir()] == [folder.name]


def prepared(folder):
    """Store the cases of a task beside another process; return which of them this one made."""
    task, own = read_task(folder), []

    def noted(contents):
        own.append(os.getpid())
        return contents

    preparation = Preparation(prepare=noted, key="noted")
    dist.barrier()
    images = []
    for case in task.training:
        stored = store_case(task, case, folder / "shards", preparation=preparation)
        images.append(np.array(stored.image))
    return len(own), images


def test_of_two_processes_one_makes_a_shard_and_both_have_it(tmp_path, gloo):
    task = read_task(write_task(tmp_path, cases=6))
    (first, images), (second, same) = gloo.run(prepared, tmp_path, size=2)
    assert first + second == 6
    for case, one, other in zip(task.training, images, same, strict=True):
        assert np.array_equal(one, read_case(task, case).image)
        assert np.array_equal(one, other)
