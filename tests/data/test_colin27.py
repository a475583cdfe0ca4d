"""Colin27: a brain in parts, cut in two; a small one, and MRIcron's where that is installed."""

from pathlib import Path

import numpy as np
import pytest
from shared_volumes import save

from raykb.data.colin27 import PARTS, colin27
from raykb.data.decathlon import read_case, read_task

TEMPLATES = Path("/usr/share/mricron/templates")
TABLE = "1 Precentral_L 2001\n2 Precentral_R 2002\n3 Insula_R 3002\n4 Vermis_10 9170\n\n"
AFFINE = np.array([[1.0, 0, 0, -3], [0, 1, 0, -4], [0, 0, 1, -1], [0, 0, 0, 1]])  # 7 x 9 x 5


def write_templates(folder, *, affine=AFFINE, atlas_affine=None, table=TABLE, most=4):
    """Write files as MRIcron's, whose head has numbered voxels; return folder, head and regions."""
    head = np.arange(1, 316, dtype=np.int16).reshape(7, 9, 5)  # (X, Y, Z)
    regions = (np.arange(315) % (most + 1)).astype(np.uint8).reshape(head.shape)
    save(folder / "ch2.nii.gz", head, affine)
    save(folder / "aal.nii.gz", regions, affine if atlas_affine is None else atlas_affine)
    (folder / "aal.nii.txt").write_text(table)
    return str(folder), head, regions


def test_a_hemisphere_is_a_case_and_the_plane_between_them_is_in_none(tmp_path):
    templates, head, regions = write_templates(tmp_path / "files")
    task = read_task(colin27(tmp_path / "out", templates=templates))
    assert task.labels == ("background", *PARTS.values())
    assert [case.name for case in task.training] == ["left", "right"]
    label = np.array([0, 1, 1, 2, 8])[regions].T  # frontal lobe, insula, cerebellum
    for case, columns, first_mm in zip(task.training, ([0, 1, 2], [4, 5, 6]), (-3, 1), strict=True):
        found = read_case(task, case)
        assert np.array_equal(found.image[0], head.T[..., columns])
        assert np.array_equal(found.label, label[..., columns])
        assert found.geometry.affine[:3, 3].tolist() == [first_mm, -4, -1]


def test_voxels_are_joined_and_stay_where_they_are(tmp_path):
    templates, head, _ = write_templates(tmp_path / "files")
    task = read_task(colin27(tmp_path / "out", spacing_mm=2, templates=templates))
    case = read_case(task, task.training[1])  # 3 x 9 x 5, of which 2 x 8 x 4 are joined
    joined = head[4:6, :8, :4].reshape(1, 2, 4, 2, 2, 2).mean((1, 3, 5))
    assert np.abs(case.image[0] - joined.T).max() < 1  # whole numbers, as the head's
    assert case.geometry.spacing_mm == (2.0, 2.0, 2.0)
    assert case.geometry.affine[:3, 3].tolist() == [1.5, -3.5, -0.5]
    assert case.label.shape == (2, 4, 1)
    with pytest.raises(ValueError, match=r"spacing_mm: 9, must be in 1\.\.8"):
        colin27(tmp_path / "other", spacing_mm=9, templates=templates)


def test_what_is_there_stays(tmp_path):
    templates, *_ = write_templates(tmp_path / "files")
    folder = colin27(tmp_path / "out", templates=templates)
    (folder / "dataset.json").write_text("mine")
    assert colin27(tmp_path / "out", templates=templates) == folder
    assert (folder / "dataset.json").read_text() == "mine"


def test_files_that_are_missing_are_told_with_the_remedy(tmp_path):
    templates, *_ = write_templates(tmp_path / "files")
    (tmp_path / "files" / "aal.nii.gz").unlink()
    (tmp_path / "files" / "aal.nii.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no aal.nii.gz, aal.nii.txt.* run: apt-get install mricron-d"
    ):
        colin27(tmp_path / "out", templates=templates)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"atlas_affine": AFFINE + np.eye(4)[3] * [[2], [0], [0], [0]]},
            "aal.nii.gz has an affine",
        ),
        ({"affine": np.diag([-1.0, 1, 1, 1])}, "has axes towards LAS, must be straight"),
        ({"most": 6}, r"regions \[5, 6\]: must be in the table"),
        ({"table": TABLE.replace("9170", "1170")}, r"regions \[4\]: must be in the table"),
    ],
)
def test_files_that_are_others_than_they_were_are_refused(tmp_path, changes, told):
    templates, *_ = write_templates(tmp_path / "files", **changes)
    with pytest.raises(ValueError, match=told):
        colin27(tmp_path / "out", templates=templates)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not TEMPLATES.is_dir(), reason="needs: apt-get install mricron-data")
def test_the_brain_itself_has_all_parts_on_both_sides(tmp_path):
    task = read_task(colin27(tmp_path))
    for case in task.training:
        found = read_case(task, case)
        assert found.label.shape == (181, 217, 90)
        assert found.geometry.spacing_mm == (1.0, 1.0, 1.0)
        voxels = np.bincount(found.label.ravel(), minlength=9)
        assert (voxels[1:] > 10_000).all()
        height = [np.nonzero(found.label == n)[0].mean() for n in (5, 8)]  # parietal, cerebellum
        assert height[0] > height[1] + 40
        assert found.image[0][found.label > 0].mean() > found.image[0][found.label == 0].mean()
