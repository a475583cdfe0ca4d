"""The ten tasks by one method: holes that are shown, and what a run that goes on does again."""

import importlib.util
import json
import runpy

import here
import nibabel
import numpy as np
import pytest
import running

from raykb.data.phantoms import write_phantoms
from raykb.nas import GOLDEN

CONFIGS = running.PIPELINES / "configs" / "segmentation"
ONE_FOLD = ("folds={splits: 2, run: [0]}", "recipe.steps=2", "patches.step=1.0")
ALONE = "comparison={over: model, on_failure: hole}"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(running.PIPELINES / "decathlon.py"))


def run(script, folder, *overrides):
    path = CONFIGS / "decathlon_phantoms.yaml"
    return here.run(script, "decathlon", here.resolved(script, path, *ONE_FOLD, *overrides), folder)


def finals(folder):
    """When the weights of each training were written, by its folder."""
    found = sorted(folder.rglob("final.pt"))
    return {str(path.parent.relative_to(folder)): path.stat().st_mtime_ns for path in found}


def test_a_training_that_fails_leaves_a_hole_that_the_table_shows(script, tmp_path, capsys):
    wild = "comparison={over: optimizer, rivals: {wild: {name: sgd, lr: 1.0e+30}}}"
    session = run(script, tmp_path, wild, "comparison.on_failure=hole", "data.tasks=[9]")
    (hole,) = session.holes
    assert "/wild/fold-0-seed-0" in hole
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["missing"] == [hole]
    assert [row["label"] for row in results["results"]] == ["adamw"]
    means = {(r["method"], r["metric"]): r["mean"] for r in results["tasks"]}
    assert means["wild", "dice"] is None
    assert means["adamw", "dice"] is not None
    told = capsys.readouterr().out
    assert "– *" in told
    assert "1 training has no result; cases without a score count in no mean, but as 0" in told
    assert hole in told


def test_a_run_that_goes_on_does_what_is_missing_and_nothing_else(script, tmp_path):
    run(script, tmp_path, ALONE)
    before, first = finals(tmp_path), (tmp_path / "results.json").read_text()
    lost = next(iter(before))
    (tmp_path / lost / "result.json").unlink()
    run(script, tmp_path, ALONE)
    after = finals(tmp_path)
    assert [name for name in before if after[name] != before[name]] == [lost]
    assert after.keys() == before.keys()
    assert (tmp_path / "results.json").read_text() == first


def test_a_task_whose_files_change_is_trained_again_and_no_other(script, tmp_path):
    root, folder = tmp_path / "tasks", tmp_path / "run"
    write_phantoms(root, tasks=[4, 9], cases=4, test_cases=0, size=16)
    real = f"data={{root: {root}, tasks: [4, 9]}}"
    run(script, folder, ALONE, real)
    before = finals(folder)
    path = next((root / "Task09_SpleenPhantom" / "imagesTr").glob("*.nii.gz"))
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + 7, image.affine), path)
    run(script, folder, ALONE, real)
    again = finals(folder)
    assert before.items() < again.items()
    (new,) = again.keys() - before.keys()
    assert new.startswith("Task09_SpleenPhantom-")
    assert len(json.loads((folder / "results.json").read_text())["results"]) == 2


def test_a_method_that_cannot_take_a_task_s_patches_is_refused_before_anything_is_trained(
    script, tmp_path
):
    deep = "comparison={over: model, rivals: {deep: {name: unet_3d, width: 4, depth: 5}}}"
    with pytest.raises(ValueError, match=r"comparison\.rivals\.deep.* must be multiples of"):
        run(script, tmp_path, deep)
    assert not finals(tmp_path)


def test_the_cells_of_a_genotype_are_one_more_method(script, tmp_path):
    (tmp_path / "genotype.json").write_text(GOLDEN.to_json())
    cells = f"{{name: scnas, genotype: {tmp_path}/genotype.json, width: 4, layers: 2}}"
    run(script, tmp_path / "run", ALONE, f"model={cells}", "data.tasks=[9]")
    (trained,) = finals(tmp_path / "run")
    config = json.loads((tmp_path / "run" / trained / "config.json").read_text())
    assert config["model"]["layers"] == 2
    assert "strides" not in config["model"]


def test_without_the_medical_packages_nothing_is_started(script, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="monai and nibabel: not installed; run: pip install"):
        run(script, tmp_path)
    assert not list(tmp_path.iterdir())
