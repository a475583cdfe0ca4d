"""dataset.json in the Decathlon's layout, and one case of it."""

import json
import unicodedata

import numpy as np
import pytest
from shared_volumes import AFFINE, geometry, labels, numbered, save, write_task

from raykb.config import ConfigError
from raykb.data.decathlon import Case, read_case, read_task, task_folders
from raykb.data.nifti import write_nifti


def test_a_task_is_what_its_file_says(tmp_path):
    task = read_task(write_task(tmp_path / "Task01_Small", channels=2))
    assert (task.name, task.modalities) == ("Small", ("MR0", "MR1"))
    assert task.labels == ("background", "organ", "lesion")
    assert [case.name for case in task.training] == ["case_0", "case_1", "case_2"]
    folder = tmp_path / "Task01_Small"
    assert task.training[1].image == folder / "imagesTr/case_1.nii.gz"
    assert task.training[1].label == folder / "labelsTr/case_1.nii.gz"
    assert task.test == (Case("case_3", folder / "imagesTs/case_3.nii.gz"),)


@pytest.mark.parametrize(
    "table",
    [
        {"2": "lesion", "0": "background", "1": "organ"},
        {"lesion": 2, "background": 0, "organ": 1},
        {"background": "0", "organ": "1", "lesion": "2"},
    ],
)
def test_labels_are_read_in_both_directions(tmp_path, table):
    task = read_task(write_task(tmp_path, cases=1, labels=table))
    assert task.labels == ("background", "organ", "lesion")


def test_twins_and_hidden_files_are_passed_over_and_cases_sorted(tmp_path):
    names = ["b", "._b", "a", "_c", ".d"]
    pairs = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    folder = write_task(tmp_path, cases=0, training=pairs, test=["./x/._t.nii", "./x/t.nii"])
    task = read_task(folder)
    assert [case.name for case in task.training] == ["a", "b"]
    assert [case.name for case in task.test] == ["t"]


def test_a_name_and_a_list_of_test_cases_may_lack(tmp_path):
    folder = write_task(tmp_path / "Task11_Other", cases=1, tests=0)
    said = json.loads((folder / "dataset.json").read_text())
    del said["name"], said["test"]
    (folder / "dataset.json").write_text(json.dumps(said))
    task = read_task(folder)
    assert (task.name, task.test) == ("Task11_Other", ())


def test_all_that_is_wrong_with_the_file_is_told_at_once(tmp_path):
    pair = {"image": "./a.nii.gz", "label": "./a.nii.gz"}
    folder = write_task(
        tmp_path,
        cases=0,
        test=[pair],
        modality={"1": "CT"},
        labels={"background": 0, "organ": 0},
        training=[pair, "./b.nii.gz", {"image": "./c.nii.gz"}, pair],
    )
    with pytest.raises(ConfigError, match=r"dataset.json: 6 problems") as caught:
        read_task(folder)
    wanted = 'must be {"image": file, "label": file}'
    assert caught.value.problems == (
        "modality: {'1': 'CT'}, must be numbered 0, 1, … without a gap",
        "labels: {'background': 0, 'organ': 0}, must give each name a number of its own",
        f"training.1: './b.nii.gz', {wanted}",
        f"training.2: {{'image': './c.nii.gz'}}, {wanted}",
        "training.3: case a is listed twice, must have a name of its own",
        f"test.0: {pair}, must be the name of a file",
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": None}, "labels: it is NoneType, must be a mapping"),
        ({"labels": {"0": "background"}}, r"labels: \['background'\], must name the backgro"),
        ({"training": []}, "training: no case is listed"),
        ({"training": "all"}, "training.0: 'all', must be"),
        ({"modality": ["CT"]}, "modality: it is list, must be a mapping"),
    ],
)
def test_what_is_of_another_form_is_told(tmp_path, changes, told):
    with pytest.raises(ConfigError, match=told):
        read_task(write_task(tmp_path, cases=1, **changes))


def test_a_file_that_is_missing_or_no_json_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset.json: is missing"):
        read_task(tmp_path)
    for text, told in (("{", "Expecting property name"), ("[]", "all of it is list, must be a ma")):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(ConfigError, match=told):
            read_task(tmp_path)


def rewritten(folder, change):
    """Put other text into dataset.json, and return the task."""
    path = folder / "dataset.json"
    path.write_bytes(change(path.read_bytes()))
    return read_task(folder)


def renamed(folder, old, new):
    """Give the files of a case other names."""
    for path in list(folder.rglob(f"*{old}*")):
        path.rename(path.with_name(path.name.replace(old, new)))


@pytest.mark.parametrize("how", ["mark", "slashes", "capitals", "outside", "links", "composed"])
def test_what_other_systems_write_is_read(tmp_path, how):
    folder, name = write_task(tmp_path / "Task01_Small", cases=1, tests=0), "case_0"
    change = bytes
    if how == "mark":
        change = lambda text: b"\xef\xbb\xbf" + text  # noqa: E731
    elif how == "slashes":
        change = lambda text: text.replace(b"/", b"\\\\")  # noqa: E731
    elif how == "capitals":
        renamed(folder, ".nii.gz", ".NII.GZ")
        change = lambda text: text.replace(b".nii.gz", b".NII.GZ")  # noqa: E731
    elif how == "outside":
        (folder / "imagesTr").rename(tmp_path / "elsewhere")
        (folder / "imagesTr").symlink_to(tmp_path / "elsewhere")
    elif how == "links":
        folder.rename(tmp_path / "stored")
        folder.symlink_to(tmp_path / "stored")
        image = folder / "imagesTr" / "case_0.nii.gz"
        image.rename(tmp_path / "of another name")
        image.symlink_to(tmp_path / "of another name")
    else:  # the file's name has letter and mark apart, and the list has them as one
        name = "Müller 日本"
        renamed(folder, "case_0", unicodedata.normalize("NFD", name))
        change = lambda text: text.replace(b"case_0", name.encode())  # noqa: E731
    task = rewritten(folder, change)
    (case,) = task.training
    assert unicodedata.normalize("NFC", case.name) == name
    assert np.array_equal(read_case(task, case).label, labels())


def test_tasks_are_found_by_name(tmp_path):
    for name in ("Task02_B", "Task01_A", "._Task01_A", "other"):
        (tmp_path / name).mkdir()
        if name != "other":
            (tmp_path / name / "dataset.json").write_text("{}")
    assert [folder.name for folder in task_folders(tmp_path)] == ["Task01_A", "Task02_B"]
    with pytest.raises(FileNotFoundError, match="must hold folders of tasks"):
        task_folders(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=f"it is a task itself: name {tmp_path}$"):
        task_folders(tmp_path / "Task01_A")


# ---------------------------------------------------------------------- one case


def test_a_case_is_its_files(tmp_path):
    task = read_task(write_task(tmp_path, channels=2))
    data = read_case(task, task.training[0])
    assert np.array_equal(data.image, [numbered(), numbered(first=1000)])
    assert np.array_equal(data.label, labels())
    assert (data.image.dtype, data.label.dtype) == (np.int16, np.uint8)
    assert data.geometry.differences(geometry()) == []
    assert read_case(task, task.test[0]).label is None


def test_labels_of_many_numbers_are_kept(tmp_path):
    folder = write_task(tmp_path, cases=1, labels={str(n): f"region {n}" for n in range(400)})
    task = read_task(folder)
    many = np.arange(np.prod(labels().shape), dtype=np.int16).reshape(labels().shape) % 400
    write_nifti(task.training[0].label, many, geometry())
    label = read_case(task, task.training[0]).label
    assert label.dtype == np.int16
    assert np.array_equal(label, many)


def refused(task, number=0):
    with pytest.raises(ConfigError) as caught:
        read_case(task, task.training[number])
    assert str(caught.value).startswith(f"case case_{number}: ")
    return caught.value.problems


def test_an_unknown_label_is_told_with_its_voxels(tmp_path):
    task = read_task(write_task(tmp_path))
    label = labels().astype(np.int16)
    label[0, 0, :3], label[1, 0, 0] = 7, -1
    write_nifti(task.training[0].label, label, geometry())
    [told] = refused(task)
    assert told == "label: has the unknown -1 in 1 voxels, 7 in 3 voxels; the task's table has 0..2"
    write_nifti(task.training[0].label, numbered(), geometry())
    [told] = refused(task)
    assert "12 in 1 voxels, …; the task's" in told


def test_another_shape_and_another_place_are_told(tmp_path):
    task = read_task(write_task(tmp_path))
    write_nifti(task.training[0].label, labels()[1:], geometry((8, 11, 13)))
    [told] = refused(task)
    assert told == "label: has shape (13, 11, 8), not (13, 11, 9); must lie where the image does"
    save(task.training[0].label, labels().T, np.abs(AFFINE))
    [told] = refused(task)
    assert told.startswith("label: has an affine that puts corners")


def test_all_that_is_wrong_with_a_case_is_told_at_once(tmp_path):
    task = read_task(write_task(tmp_path))
    image, label = numbered(), labels()
    write_nifti(task.training[0].image, np.stack([image, image]), geometry())
    label[0, 0, 0] = 9
    write_nifti(task.training[0].label, label[1:], geometry((8, 11, 13)))
    label[1, 0, 0] = 9
    write_nifti(task.training[0].label, label[1:], geometry((8, 11, 13)))
    told = refused(task)
    assert [line.split(":")[0] for line in told] == ["image", "label", "label"]
    assert "has 2 channels, must have 1: MR0" in told[0]
    task.training[0].image.unlink()
    task.training[0].label.unlink()
    assert [line.rpartition(": ")[2] for line in refused(task)] == ["is missing", "is missing"]
