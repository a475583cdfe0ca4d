"""Volumes by row: handles, and boxes of what they stand for."""

import pickle

import numpy as np
import pytest
from shared_volumes import geometry, labels, numbered, write_task

from raykb.config import ConfigError
from raykb.data import nifti
from raykb.data.decathlon import read_task
from raykb.data.nifti import write_nifti
from raykb.data.volume_shards import Contents, Preparation
from raykb.data.volumes import Volumes, crop, open_volumes, patch_start


@pytest.fixture
def task(tmp_path):
    return read_task(write_task(tmp_path / "task", cases=5, tests=2))


@pytest.mark.parametrize("start", [(0, 0, 0), (2, 3, 1), (-2, 1, 4), (7, -3, 9), (4, 4, -5)])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 4, 5), (12, 3, 2), (20, 20, 20)])
def test_a_crop_is_a_slice_of_the_whole_and_filled_up_around(start, size):
    whole = np.stack([numbered(), numbered(first=2000)])
    far = 20
    around = np.pad(whole, ((0, 0), *[(far, far)] * 3), constant_values=-7)
    box = tuple(slice(far + s, far + s + n) for s, n in zip(start, size, strict=True))
    out = np.zeros((2, *size), np.float32)
    crop(whole, start, out, fill=-7)
    assert np.array_equal(out, around[(slice(None), *box)])
    label = np.zeros(size, np.int16)
    crop(whole[0], start, label)
    assert np.array_equal(label, np.pad(whole[0], far)[box])


@pytest.mark.parametrize("start", [(-3, 0, 0), (0, 11, 0), (0, 0, -9), (40, 0, 0), (-40, 0, 0)])
def test_a_crop_beside_the_volume_is_filled(start):
    out = np.zeros((3, 4, 5), np.int16)
    crop(numbered() + np.int16(1), start, out, fill=3)
    assert (out == 3).all()


def test_a_patch_begins_anywhere_that_it_fits_each_place_as_likely():
    uniforms = np.random.default_rng(0).random((4000, 3))
    starts = np.array([patch_start((9, 4, 8), (4, 4, 11), u) for u in uniforms])
    counts = np.bincount(starts[:, 0])
    assert len(counts) == 6  # 0..5
    assert counts.min() > 550  # of 667
    assert set(starts[:, 1]) == {0}
    assert set(starts[:, 2]) == {-2}  # two before, one after
    assert patch_start((9, 9, 9), (4, 4, 4), np.full(3, 1 - 2**-53)) == [5, 5, 5]


def test_a_patch_about_a_voxel_has_it_nearest_to_its_middle():
    uniforms = np.full(3, 0.9)
    for place in ((0, 5, 15), (1, 2, 3), (9, 19, 0)):
        start = patch_start((10, 20, 16), (4, 6, 20), uniforms, np.array(place))
        for first, voxel, length, most in zip(start, place, (4, 6), (10, 20), strict=False):
            allowed = range(most - length + 1)
            assert first == min(allowed, key=lambda s: abs(s - (voxel - length // 2)))
        assert start[2] == -2


def test_reading_gives_handles_and_no_voxels(task, tmp_path):
    volumes = open_volumes(task, tmp_path / "shards")
    assert (len(volumes), volumes.channels, volumes.dtype) == (5, 1, np.int16)
    assert volumes.classes == ("background", "organ", "lesion")
    assert volumes.labelled
    assert [case.name for case in volumes.cases] == [f"case_{n}" for n in range(5)]
    arrays, ids, problems = volumes.read(np.array([3, 0, 3]))
    assert {name: array.tolist() for name, array in arrays.items()} == {"cases": [3, 0, 3]}
    assert (ids.tolist(), problems) == ([3, 0, 3], ["", "", ""])
    assert len(pickle.dumps(volumes)) < 5 * 700 + 700


def test_handles_of_a_subset_are_those_of_the_whole(task, tmp_path):
    volumes = open_volumes(task, tmp_path / "shards")
    some = volumes.subset(np.array([4, 1])).subset(np.array([1, 0]))
    assert (len(some), some.ids.tolist()) == (2, [1, 4])
    handles = some.read(np.array([0, 1])).arrays["cases"]
    assert [volumes.case(handle).name for handle in handles.tolist()] == ["case_1", "case_4"]
    assert some.case(4).name == "case_4"


def test_test_cases_have_images_alone(task, tmp_path):
    volumes = open_volumes(task, tmp_path / "shards", part="test")
    assert [case.name for case in volumes.cases] == ["case_5", "case_6"]
    assert not volumes.labelled
    with pytest.raises(ValueError, match=r"part: 'test', of which .* has no case"):
        open_volumes(read_task(write_task(tmp_path, tests=0)), tmp_path / "none", part="test")


def test_all_cases_that_cannot_be_used_are_told_at_once_by_name(task, tmp_path):
    files = task.training
    files[0].image.unlink()
    raw = files[1].image.read_bytes()
    files[1].image.write_bytes(raw[: len(raw) // 2])
    write_nifti(files[3].label, labels()[1:], geometry((8, 11, 13)))
    label = labels()
    label[5, 5, 5] = 4
    write_nifti(files[4].label, label, geometry())
    for workers in (1, 3):
        with pytest.raises(ConfigError, match="the training cases cannot be used: 4 prob") as told:
            open_volumes(task, tmp_path / "shards", workers=workers)
        lines = sorted(told.value.problems)
        assert lines[0].startswith("case_0.image: ")
        assert lines[0].endswith("/imagesTr/case_0.nii.gz: is missing")
        assert lines[1].startswith("case_1.image: ")
        assert lines[2].startswith("case_3.label: has shape (13, 11, 8), not (13, 11, 9)")
        assert lines[3].startswith("case_4.label: has the unknown 4 in 1 voxels")
    shards = [path.name for path in (tmp_path / "shards").iterdir() if path.is_dir()]
    assert [name.split("-")[0] for name in shards] == ["case_2"]


def test_threads_find_the_same(task, tmp_path):
    one, three = (
        open_volumes(task, tmp_path / str(workers), workers=workers) for workers in (1, 3)
    )
    for case, same in zip(one.cases, three.cases, strict=True):
        assert (case.name, case.folder.name) == (same.name, same.folder.name)
        assert np.array_equal(case.image, same.image)


def kinds(task, shards, *names):
    """Volumes whose images have these types."""
    cases = []
    for name in names:

        def cast(contents, name=name):
            return Contents(contents.image.astype(name), *contents[1:])

        preparation = Preparation(prepare=cast, key=name)
        cases.append(open_volumes(task, shards, preparation=preparation).cases[0])
    return Volumes(tuple(cases), np.arange(len(cases)), ("background", "organ", "lesion"))


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (["u1"], "u1"),
        (["i2"], "i2"),
        (["u2"], "i4"),
        (["u4"], "i8"),
        (["u1", "i2"], "i2"),
        (["i2", "u2"], "i4"),
        (["i2", "f4"], "f4"),
        (["f4", "f8"], "f8"),
    ],
)
def test_images_have_one_type_that_torch_computes_with(task, tmp_path, names, common):
    assert kinds(task, tmp_path / "shards", *names).dtype == np.dtype(common)


def test_volumes_that_differ_are_refused(task, tmp_path):
    training, test = (open_volumes(task, tmp_path, part=part) for part in ("training", "test"))
    both = training.cases[:1] + test.cases[:1]
    with pytest.raises(ValueError, match="labelled: True as in case_0, False as in case_5; must"):
        Volumes(both, np.arange(2), task.labels)
    for ids in ([3, 3], [3, 4, 5]):
        with pytest.raises(ValueError, match=rf"ids: \{ids} of 2 cases, must be one for each"):
            Volumes(training.cases[:2], np.array(ids), task.labels)
    with pytest.raises(ValueError, match="cases: none, there must be at least one"):
        Volumes((), np.arange(0), task.labels)
    other = read_task(write_task(tmp_path / "other", cases=1, channels=2))
    two = open_volumes(other, tmp_path / "shards").cases
    with pytest.raises(ValueError, match="channels: 1 as in case_0, 2 as in case_0"):
        Volumes(training.cases[:1] + two, np.arange(2), task.labels)


def test_without_nibabel_volumes_say_what_to_install(task, tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "nibabel", None)
    with pytest.raises(ImportError, match=r"volumes: .*pip install 'raykb\[medical\]'"):
        open_volumes(task, tmp_path / "shards")
