"""Phantoms: ten tasks of known geometry that the reader takes for the Decathlon."""

import json

import numpy as np
import pytest

from raykb.data import nifti, phantoms
from raykb.data.decathlon import read_case, read_task, task_folders
from raykb.data.phantom_anatomy import ANATOMIES
from raykb.data.phantom_shapes import Ball, Draw, Shell, Tube
from raykb.data.phantoms import draw_phantom, write_phantoms

REGIONS = (3, 1, 2, 2, 2, 1, 2, 2, 1, 1)
CHANNELS = (4, 1, 1, 1, 2, 1, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=4, test_cases=1, size=24)
    return folder


def grid(half=30, step=0.5):
    line = np.arange(-half, half + step, step)
    return np.ix_(line, line, line)


@pytest.mark.parametrize(
    ("shape", "volume_mm3"),
    [
        (Ball((1, -2, 3), (20, 20, 20)), 4 / 3 * np.pi * 20**3),
        (Ball((0, 0, 0), (25, 12, 6)), 4 / 3 * np.pi * 25 * 12 * 6),
        (Shell((1, 0, 0), (24, 16, 20), 0.75), 4 / 3 * np.pi * 24 * 16 * 20 * (1 - 0.75**3)),
        (Tube((-12, 3, 4), (12, -5, 4), 7), np.pi * 49 * np.hypot(24, 8) + 4 / 3 * np.pi * 7**3),
    ],
)
def test_shapes_have_the_volume_that_geometry_gives_them(shape, volume_mm3):
    inside = shape.inside(grid())
    assert inside.sum() * 0.5**3 == pytest.approx(volume_mm3, rel=0.01)
    assert not inside[0].any()  # none of them reaches a border
    assert not inside[..., -1].any()


def test_a_shell_is_a_ball_without_its_hollow():
    ball, hollow = Ball((2, 1, 0), (20, 16, 12)), Ball((2, 1, 0), (12, 9.6, 7.2))
    shell = Shell((2, 1, 0), (20, 16, 12), 0.6)
    at = grid(step=1.0)
    assert np.array_equal(shell.inside(at), ball.inside(at) & ~hollow.inside(at))


def test_points_are_voxels_and_what_is_small_is_seen():
    spacing = np.array([5.0, 1.0, 1.0])
    draw = Draw(np.random.default_rng(0), np.array([40.0, 16, 16]), spacing)
    for _ in range(50):
        place = np.array(draw.point(0.5, about=(2, 3, -4))) / spacing
        assert np.allclose(place, np.rint(place))
        assert (np.abs(place * spacing - [2, 3, -4]) <= 0.5 * draw.half_mm + spacing / 2).all()
    assert draw.small(0.01, 0.02) == (1.5, 1.5, 1.5)


def test_ten_tasks_are_what_the_reader_takes_for_the_decathlon(root):
    tasks = [read_task(folder) for folder in task_folders(root)]
    assert [len(task.labels) - 1 for task in tasks] == list(REGIONS)
    assert [len(task.modalities) for task in tasks] == list(CHANNELS)
    for number, task in enumerate(tasks, 1):
        assert task.folder.name == f"Task{number:02d}_{ANATOMIES[number].name}Phantom"
        said = json.loads((task.folder / "dataset.json").read_text())
        assert (
            (said["numTraining"], said["numTest"]) == (len(task.training), len(task.test)) == (4, 1)
        )
        assert said["tensorImageSize"] == ("4D" if len(task.modalities) > 1 else "3D")
        cases = [read_case(task, case) for case in task.training]
        present = np.unique(np.concatenate([case.label.ravel() for case in cases]))
        assert present.tolist() == list(range(len(task.labels)))
        assert all(min(case.label.shape) >= 16 for case in cases)
        assert read_case(task, task.test[0]).label is None
        spacing = np.array(cases[0].geometry.spacing_mm)
        assert np.allclose(spacing, ANATOMIES[number].spacing_mm, rtol=1e-5)
        assert spacing.max() / spacing.min() <= 5.001


def test_they_have_what_real_tasks_have_trouble_with(root):
    tasks = [read_task(folder) for folder in task_folders(root)]
    cases = [read_case(task, task.training[0]) for task in tasks]
    spacings = [case.geometry.spacing_mm for case in cases]
    assert max(max(spacing) / min(spacing) for spacing in spacings) == pytest.approx(5, rel=1e-5)
    assert {case.geometry.orientation for case in cases} == {"RAS", "LAS", "LPS"}
    assert {case.image.dtype.name for case in cases} == {"float32", "int16", "uint8", "uint16"}
    assert any(np.count_nonzero(np.abs(case.geometry.affine[:3, :3]) > 1e-3) > 3 for case in cases)
    shares = [np.bincount(case.label.ravel())[1:] / case.label.size for case in cases]
    assert min(share.min() for share in shares) < 0.002  # something small
    assert max(share.max() for share in shares) > 0.1  # and something large
    assert len({case.image.shape for case in cases}) > 5
    kinds = [np.asanyarray(nifti.nibabel.load(task.training[0].label).dataobj) for task in tasks]
    assert {kind.dtype.name for kind in kinds} == {"uint8", "float32"}


@pytest.mark.parametrize("number", ANATOMIES)
def test_labels_and_brightness_are_those_of_what_was_drawn_last(number):
    phantom, anatomy = draw_phantom(number, 2, size=24, seed=5), ANATOMIES[number]
    spacing = anatomy.spacing_mm
    at = np.ix_(
        *((np.arange(n) - n // 2) * mm for n, mm in zip(phantom.label.shape, spacing, strict=True))
    )
    top = np.full(phantom.label.shape, "air", dtype=object)
    for name, shape in phantom.parts:
        top[shape.inside(at)] = name
    for name, tissue in anatomy.tissues.items():
        here = top == name
        assert (phantom.label[here] == tissue.label).all()
        if here.sum() < 30:
            continue
        means = phantom.image[:, here].astype(float).mean(1)
        if anatomy.modalities == ("CT",):
            assert means == pytest.approx(tissue.brightness, abs=15)
        else:  # under a bias field
            scale = 4 if phantom.image.dtype == np.uint8 else 1
            assert means * scale == pytest.approx(tissue.brightness, rel=0.5)
    assert (phantom.label[top == "air"] == 0).all()


def test_a_seed_decides_all_that_is_drawn(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        write_phantoms(folder, tasks=[4], cases=2, test_cases=1, size=16, seed=seed)
    first, again, other = (
        {path.name: path.read_bytes() for path in sorted(folder.rglob("*.nii.gz"))}
        for folder in folders
    )
    assert first == again
    assert len(first) == 3  # an image and its label have one name
    assert all(first[name] != other[name] for name in first)
    a, b = (draw_phantom(4, case, size=16, seed=1) for case in (0, 1))
    assert a.image.shape != b.image.shape or not np.array_equal(a.image, b.image)
    assert not np.array_equal(draw_phantom(5, 0).label, draw_phantom(4, 0).label)


def test_mr_has_a_bias_field_that_differs_from_case_to_case():
    fields = [phantoms._bias((20, 22, 24), np.random.default_rng(seed)) for seed in (0, 1)]
    for field in fields:
        assert field.min() < 0.95 < 1.05 < field.max()
        assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.3  # smooth
    assert not np.allclose(*fields)


def test_what_is_there_stays_and_other_settings_are_refused(root, tmp_path):
    settings = {"tasks": [2], "cases": 1, "test_cases": 0, "size": 16}
    [folder] = write_phantoms(tmp_path / "new" / "root", **settings)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_phantoms(tmp_path / "new" / "root", **settings) == [folder]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for change in ({"cases": 2}, {"test_cases": 1}, {"size": 17}, {"seed": 1}):
        with pytest.raises(ValueError, match=r"root: .*holds 'phantoms 1: cases 1, .* choose anot"):
            write_phantoms(tmp_path / "new" / "root", **(settings | change))


def test_settings_out_of_range_are_told_at_once(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"tasks: 11, must be of 1..10; cases: 0, must") as told:
        write_phantoms(tmp_path / "no", tasks=[1, 11], cases=0, test_cases=-1, size=15)
    assert "test_cases: -1, must be at least 0; size: 15, must be at least 16" in str(told.value)
    monkeypatch.setattr(nifti, "nibabel", None)
    with pytest.raises(ImportError, match="pip install"):
        write_phantoms(tmp_path / "no")
    assert not (tmp_path / "no").exists()
