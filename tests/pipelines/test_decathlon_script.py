"""The ten tasks by one method: holes that are shown, and what a run that goes on does again."""

import dataclasses
import importlib.util
import itertools
import json
import runpy

import here
import nibabel
import numpy as np
import pytest
import running

from raykb.assembly import prepared
from raykb.comparison import Comparison
from raykb.config import build
from raykb.data.phantoms import write_phantoms
from raykb.nas import GOLDEN
from raykb.runtime.session import Refused

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
    hole, prediction = session.holes
    assert "/wild/fold-0-seed-0" in hole
    assert prediction == "predictions/Task09_SpleenPhantom/wild/spleen_004.nii.gz"
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


def compared(script, text, *overrides):
    """Return the models that ``--methods`` compares, by label in the order of the table."""
    path = CONFIGS / "decathlon_phantoms.yaml"
    config = here.resolved(script, path, *overrides)
    short = script["methods_named"](config, given={"methods": text})
    both = [config, here.resolved(script, path, *overrides, *short)]
    assert both[0]["comparison"]["seeds"] == both[1]["comparison"]["seeds"]
    again = script["methods_named"](both[1], given={"methods": text})
    assert here.resolved(script, path, *overrides, *short, *again) == both[1]  # as a resumed run
    entries = build(Comparison, both[1]["comparison"]).entries(both[1])
    return {label: entry["model"] for label, entry in entries.items()}


def test_methods_are_labels_of_the_configuration_networks_and_genotypes(script, tmp_path):
    (file := tmp_path / "found_1.json").write_text(GOLDEN.to_json())
    found = compared(script, f"unet_3d, {file},planned_unet", "comparison.seeds=2")
    assert list(found) == ["unet_3d", "found_1", "planned_unet"]
    assert found["unet_3d"]["width"] == 4  # as the rival of that label has it
    assert found["found_1"]["genotype"] == str(file)
    assert list(compared(script, "unet_3d")) == ["unet_3d"]
    other = "comparison={over: optimizer, rivals: {sgd: {name: sgd, lr: 0.1}}}"
    assert compared(script, "planned_unet,unet_3d", other)["unet_3d"]["width"] == 32


def test_methods_that_are_not_known_or_are_called_alike_are_refused(script):
    with pytest.raises(ValueError, match=r"--methods: 'unet', must be one of unet_3d, planned_une"):
        compared(script, "unet,planned_unet")
    with pytest.raises(ValueError, match="--methods: found, found, must be called otherwise each"):
        compared(script, "a/found.json,b/found.json")


TEST = ("data={tasks: [4, 9], cases: 4, test_cases: 2, size: 16}", "recipe.steps=1")


def written(folder):
    """When each prediction was written, by its name."""
    found = sorted((folder / "predictions").rglob("*.nii.gz"))
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


def test_test_cases_and_if_asked_for_held_out_ones_are_written_by_each_method(script, tmp_path):
    run(script, tmp_path, ALONE, *TEST, "predictions.validation=true", "comparison.seeds=2")
    found = written(tmp_path)
    spleen = [name for name in found if name.startswith("predictions/Task09_SpleenPhantom/")]
    below = "predictions/Task09_SpleenPhantom/planned_unet"
    assert [name for name in spleen if "validation" not in name] == [
        f"{below}/spleen_004.nii.gz",
        f"{below}/spleen_005.nii.gz",
    ]
    details = next(tmp_path.glob("Task09*/planned_unet/fold-0-seed-0/details.json"))
    held_out = json.loads(details.read_text())["dice"]  # by the fold that is run
    assert sorted(name for name in spleen if "validation" in name) == sorted(
        f"{below}/validation/{case}.nii.gz" for case in held_out
    )
    image = tmp_path / "phantoms" / "Task09_SpleenPhantom" / "imagesTs" / "spleen_004.nii.gz"
    given, labels = nibabel.load(image), nibabel.load(tmp_path / below / "spleen_004.nii.gz")
    assert labels.shape == given.shape[:3]
    assert np.allclose(labels.affine, given.affine)


def odd_task(folder, cases):
    """Write a task of one label, whose last case is a test case, of (image, label, affine)."""
    names = [f"case {number}" for number in range(len(cases))]
    for name, (image, label, affine) in zip(names, cases, strict=True):
        part = "Ts" if name == names[-1] else "Tr"
        for place, array in (("images", image), ("labels", label)):
            path = folder / f"{place}{part}" / f"{name}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine), path)
    said = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "organ", "2": "nowhere"}}
    said["training"] = [
        {"image": f"imagesTr/{name}.nii", "label": f"labelsTr/{name}.nii"} for name in names[:-1]
    ]
    said["test"] = [f"imagesTs/{names[-1]}.nii"]
    (folder / "dataset.json").write_text(json.dumps(said))


def test_odd_files_are_learnt_from_and_segmented_in_the_geometry_of_each(script, tmp_path):
    shape, root = (18, 17, 16), tmp_path / "tasks"
    noise = np.random.default_rng(0).normal(100, 5, shape)
    organ = np.zeros(shape, np.uint8)
    organ[4:9, 5:10, 6:11] = 1
    turned = np.array([[0, 0, 3.0, 9], [-1, 0, 0, 5], [0, 1, 0, 2], [0, 0, 0, 1]])
    seen = noise + 50 * organ
    odd = [
        (seen.astype(">u2"), organ, np.diag([-1.0, 1, 1, 1])),
        (seen, organ.astype(float), np.diag([1.0, -1, -1, 1])),
        (seen.astype(np.float32)[..., None], organ[..., None], turned),
        (np.full(shape, 7, np.uint8), organ * 0, np.eye(4)),
        (seen[:, :9, :5].astype(np.int16), organ[:, :9, :5], np.diag([1.0, 1, 5, 1])),
    ]
    odd_task(root / "Task01_Odd", odd)
    flat = [(image.reshape(shape)[:, :, 7:8], None, affine) for image, _, affine in odd[:3]]
    odd_task(root / "Task02_Flat", [(i, organ[:, :, 7:8], affine) for i, _, affine in flat])
    real = f"data={{root: {root}}}", "predictions.validation=true", "folds={splits: 2, run: null}"
    assert run(script, tmp_path / "run", ALONE, *real, "recipe.steps=1").holes == []
    found = list((tmp_path / "run" / "predictions").rglob("*.nii.gz"))
    assert len(found) == 5 + 3
    for path in found:
        part = "Tr" if path.parent.name == "validation" else "Ts"
        task = path.relative_to(tmp_path / "run" / "predictions").parts[0]
        given = nibabel.load(root / task / f"images{part}" / path.name.removesuffix(".gz"))
        labels = nibabel.load(path)
        assert labels.shape == given.shape[:3]
        assert np.allclose(labels.affine, given.affine)


def test_largest_pieces_are_chosen_by_all_held_out_cases_and_written_down(script, tmp_path):
    run(script, tmp_path, *TEST, "folds={splits: 2, run: null}", "comparison.rivals={}")
    told = json.loads((tmp_path / "postprocessing.json").read_text())["tasks"]
    own = told["Task04_HippocampusPhantom"]["planned_unet"]
    assert own["cases"] == 4
    assert own["dice"]["before"].keys() == own["dice"]["after"].keys() == {"Anterior", "Posterior"}
    dice = own["dice"]
    changed = {label for label in dice["before"] if dice["after"][label] != dice["before"][label]}
    assert own["foreground"] or changed == set(own["labels"])
    means = json.loads((tmp_path / "results.json").read_text())["tasks"]
    mean = next(row["mean"] for row in means if row["task"] == "Task04_HippocampusPhantom")
    assert np.mean(list(dice["before"].values())) == pytest.approx(mean)


def test_a_test_case_that_cannot_be_read_is_a_hole_and_is_made_when_it_can(
    script, tmp_path, capsys
):
    run(script, tmp_path, ALONE, *TEST)
    before = written(tmp_path)
    image = tmp_path / "phantoms" / "Task09_SpleenPhantom" / "imagesTs" / "spleen_005.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[:500])
    session = run(script, tmp_path, ALONE, *TEST)
    hole = "predictions/Task09_SpleenPhantom/planned_unet/spleen_005.nii.gz"
    assert session.holes == [hole]
    assert f"{hole}: failed, the others go on: ConfigError" in capsys.readouterr().err
    assert (tmp_path / "predictions_missing.txt").read_text() == f"{hole}\n"
    rest = {name: when for name, when in before.items() if name != hole}
    assert written(tmp_path) == rest
    image.write_bytes(whole)
    assert run(script, tmp_path, ALONE, *TEST).holes == []
    assert not (tmp_path / "predictions_missing.txt").exists()
    assert rest.items() < written(tmp_path).items()
    assert hole in written(tmp_path)


def test_a_missing_test_case_is_refused_before_anything_is_trained(script, tmp_path):
    write_phantoms(tmp_path / "tasks", tasks=[9], cases=4, test_cases=1, size=16)
    (image,) = (tmp_path / "tasks" / "Task09_SpleenPhantom" / "imagesTs").glob("*.nii.gz")
    image.unlink()
    real = f"data={{root: {tmp_path}/tasks}}"
    with pytest.raises(Refused, match=r"spleen_004.nii.gz is missing; put it there, or give"):
        run(script, tmp_path / "run", ALONE, real)
    assert not finals(tmp_path)
    session = run(script, tmp_path / "run", ALONE, real, "predictions.test=false")
    assert session.holes == []
    assert written(tmp_path / "run") == {}


def test_a_fold_that_meets_a_nan_is_a_hole_and_is_joined_when_it_has_been_trained(
    script, tmp_path, monkeypatch, capsys
):
    options = *TEST, ALONE, "folds={splits: 2, run: null}", "recipe.steps=2", "data.tasks=[9]"
    sound = here.HERE

    def diverging(jobs, **others):
        first, *rest = jobs
        config = first.arguments["config"] | {"optimizer": {"name": "sgd", "lr": 1e30}}
        wild = dataclasses.replace(first, arguments=first.arguments | {"config": config})
        return sound.train([wild, *rest], **others)

    monkeypatch.setattr(here, "HERE", dataclasses.replace(sound, train=diverging))
    session = run(script, tmp_path, *options)
    (hole,) = session.holes
    assert "fold-0" in hole
    assert "FloatingPointError: loss: nan within" in capsys.readouterr().err
    table = (tmp_path / "results.md").read_text()
    assert " *" in table
    assert hole in table
    before, early = finals(tmp_path), written(tmp_path)
    assert len(before) == 1
    assert len(early) == 2  # by the fold that is there
    monkeypatch.setattr(here, "HERE", sound)
    assert run(script, tmp_path, *options).holes == []
    after, late = finals(tmp_path), written(tmp_path)
    assert len(after) == 2
    assert before.items() < after.items()
    assert all(late[name] > early[name] for name in early)
    assert hole not in (tmp_path / "results.md").read_text()


class Killed(BaseException):
    """What ends a driver between two pieces of work."""


@pytest.fixture(scope="module")
def whole(script, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(script, folder, ALONE, *TEST)
    return folder


@pytest.mark.parametrize(("after", "what"), [(1, "train"), (2, "call")])
def test_a_driver_that_is_killed_does_nothing_again_that_was_finished(
    script, whole, tmp_path, monkeypatch, after, what
):
    folder, count = tmp_path / "killed", itertools.count()
    machine = here.HERE

    def dying(function, *arguments, **options):
        if function is not prepared and next(count) == after:
            raise Killed
        return machine.call(function, *arguments, **options)

    def dying_training(jobs, **options):
        machine.train(jobs[:after], **options)
        raise Killed

    worn = dataclasses.replace(machine, **{what: dying if what == "call" else dying_training})
    monkeypatch.setattr(here, "HERE", worn)
    with pytest.raises(Killed):
        run(script, folder, ALONE, *TEST)
    before = finals(folder) | written(folder)
    assert len(before) == {"train": 1, "call": 2 + 2}[what]
    monkeypatch.setattr(here, "HERE", machine)
    run(script, folder, ALONE, *TEST)
    assert before.items() < (finals(folder) | written(folder)).items()
    for name in ("results.json", "postprocessing.json"):
        assert (folder / name).read_text() == (whole / name).read_text()
    for name in written(whole):
        assert nibabel_equal(whole / name, folder / name)


def nibabel_equal(one, other):
    return np.array_equal(*(np.asarray(nibabel.load(path).dataobj) for path in (one, other)))


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
