"""From the files of a task to what a segmentation training reads: plan, cases, folds, patches."""

import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest
import torch

from raykb.assembly import (
    Folds,
    PlanSettings,
    Tasks,
    opened,
    planned,
    prepared,
    rehearse_all,
    segmentation_data,
    stand_in,
    training,
)
from raykb.assembly.segmentation import prepared_case
from raykb.config import ConfigError, Problems
from raykb.data.folds import folds
from raykb.data.phantoms import write_phantoms
from raykb.data.volume_shards import Contents
from raykb.engine.loop import Worker, fit
from raykb.engine.seeding import seed_everything
from raykb.models import SEGMENTERS
from raykb.segmentation import METHODS
from raykb.segmentation.nnunet import plan

SMALL = PlanSettings(width=4, patch=16, multiple=4, batch_size=2)
UNET = {"name": "unet_3d", "width": 4, "depth": 2}
CONFIG = {
    "recipe": {"steps": 4},
    "method": {"name": "dice_cross_entropy"},
    "model": {"name": "planned_unet"},
    "optimizer": {"name": "sgd", "lr": 0.01},
    "schedule": {"name": "poly"},
    "patches": {},
    "augmentation": {"name": "none"},
    "folds": {"splits": 2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Phantoms of a task of thick slices and of one with four modalities."""
    folder = tmp_path_factory.mktemp("tasks")
    write_phantoms(folder, tasks=[1, 9], cases=4, test_cases=0, size=16)
    return folder


@pytest.fixture(scope="module")
def spleen(root):
    (task,) = opened(root, [9])
    return prepared(task, SMALL, root / "shards")


def made(task, model=None, augmentation="none", **options):
    config = CONFIG | {"augmentation": {"name": augmentation}}
    config |= {} if model is None else {"model": model}
    seed_everything(0)
    return training(
        Worker(),
        config=planned(task.configuration, SEGMENTERS, config),
        methods=METHODS,
        seed=0,
        data=segmentation_data,
        models=SEGMENTERS,
        task=task,
        fold=0,
        **options,
    )


def test_tasks_are_chosen_by_their_numbers_and_unknown_ones_refused(root):
    assert [task.folder.name for task in opened(root)] == [
        "Task01_BrainTumourPhantom",
        "Task09_SpleenPhantom",
    ]
    with pytest.raises(ValueError, match="tasks: 3, must be of one folder in"):
        opened(root, [9, 3])


def test_limits_hold_for_a_plan_and_no_limits_leave_it(spleen):
    own, whole = spleen.configuration, PlanSettings().plan(spleen.fingerprint).configurations[0]
    assert max(own.patch_size) <= 16
    assert own.widths[:2] == (4, 8)
    assert own.batch_size == 2
    assert whole.widths[:2] == (32, 64)
    assert whole.spacing_mm == own.spacing_mm
    assert all(size % 4 == 0 for size in own.patch_size)


def test_cases_of_one_slice_have_the_plan_in_2d_which_does_not_reach_across_slices(spleen):
    cases = len(spleen.fingerprint.shapes)
    flat = dataclasses.replace(
        spleen.fingerprint, shapes=((1, 64, 60),) * cases, spacings_mm=((5.0, 1.0, 2.0),) * cases
    )
    slices = plan(flat, 8.0).configuration("2d")
    own = PlanSettings().plan(flat).configuration("3d_fullres")
    assert own.patch_size == (1, *slices.patch_size)
    assert own.spacing_mm == (5.0, 1.0, 2.0)
    assert (
        {stride[0] for stride in own.strides} == {kernel[0] for kernel in own.kernel_sizes} == {1}
    )
    assert [stride[1:] for stride in own.strides] == list(slices.strides)
    assert (own.widths, own.batch_size) == (slices.widths, slices.batch_size)
    assert all(size % 4 == 0 for size in SMALL.plan(flat).configurations[0].patch_size)


def test_a_multiple_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="multiple: 6, must be a power of two"):
        PlanSettings(multiple=6)


def test_what_a_plan_decides_stands_in_the_config_as_json_has_it(spleen):
    config = planned(spleen.configuration, SEGMENTERS, CONFIG)
    assert json.loads(json.dumps(config)) == config
    assert config["recipe"]["batch_size"] == spleen.configuration.batch_size
    assert config["model"]["widths"] == list(spleen.configuration.widths)
    plain = planned(spleen.configuration, SEGMENTERS, CONFIG | {"model": UNET})
    assert plain["model"] == UNET


def test_cases_are_prepared_in_the_plans_spacing_and_normalised(root):
    (task,) = opened(root, [1])
    brain = prepared(task, SMALL, root / "shards")
    for case in brain.volumes.cases:
        assert case.spacing_mm == brain.configuration.spacing_mm
        assert case.image.shape == (4, *case.shape)
        assert set(np.unique(case.label)) <= {0, 1, 2, 3}
        assert case.image.mean() == pytest.approx(0, abs=0.05)


def test_a_case_is_cropped_transposed_and_resampled_with_its_label(spleen):
    image, label = np.zeros((1, 6, 8, 10), np.float32), np.zeros((6, 8, 10), np.uint8)
    image[0, 1:5, 2:6, 3:9], label[1:3, 2:4, 5:7] = 50.0, 1
    cubes = dataclasses.replace(spleen.configuration, spacing_mm=(2.0, 2.0, 2.0))
    plan = dataclasses.replace(spleen.plan, transpose=(2, 0, 1), configurations=(cubes,))
    after = prepared_case(plan, Contents(image, label, (1.0, 1.0, 1.0)))
    assert after.image.shape == (1, 3, 2, 2)  # X, Z and Y of a box of 4 x 4 x 6 voxels
    assert np.argwhere(after.label).tolist() == [[1, 0, 0]]


def test_what_is_prepared_is_taken_up_again_and_another_plan_makes_only_other_shards(root, spleen):
    (task,) = opened(root, [9])
    shards = sorted((root / "shards").glob("spleen*"))
    again = prepared(task, SMALL, root / "shards", spleen.record())
    assert again.plan.hash == spleen.plan.hash
    assert again.record() == spleen.record()
    assert sorted((root / "shards").glob("spleen*")) == shards
    other = prepared(task, PlanSettings(width=5, patch=16), root / "shards", spleen.record())
    assert other.plan.hash != spleen.plan.hash
    assert set(shards) < set((root / "shards").glob("spleen*"))


def test_all_cases_that_cannot_be_used_are_told_at_once_by_name(tmp_path):
    write_phantoms(tmp_path, tasks=[9], cases=4, test_cases=0, size=16)
    (task,) = opened(tmp_path, [9])
    task.training[1].label.unlink()
    task.training[3].image.write_bytes(task.training[3].image.read_bytes()[:2000])
    with pytest.raises(ConfigError, match="the training cases cannot be used: 2 problems") as told:
        prepared(task, SMALL, tmp_path / "shards")
    one, other = told.value.problems
    assert one.startswith("spleen_001.label: ")
    assert one.endswith("is missing")
    assert other.startswith("spleen_003.image: ")


def test_a_fingerprint_is_taken_from_the_record_until_a_file_changes(tmp_path):
    write_phantoms(tmp_path, tasks=[9], cases=2, test_cases=0, size=16)
    (task,) = opened(tmp_path)
    first = prepared(task, SMALL, tmp_path / "shards")
    path = task.training[0].image
    other = task.training[1].image.read_bytes()
    assert prepared(task, SMALL, tmp_path / "shards", first.record()).files == first.files
    path.write_bytes(other)
    task.training[0].label.write_bytes(task.training[1].label.read_bytes())
    second = prepared(task, SMALL, tmp_path / "shards", first.record())
    assert second.files != first.files
    assert second.fingerprint != first.fingerprint


def test_all_cases_that_cannot_be_used_are_told_at_once(tmp_path):
    write_phantoms(tmp_path, tasks=[9], cases=3, test_cases=0, size=16)
    (task,) = opened(tmp_path)
    first, _, last = task.training
    first.image.write_bytes(first.image.read_bytes()[:1000])
    last.label.unlink()
    with pytest.raises(ConfigError, match="the training cases cannot be used: 2 problems") as told:
        prepared(task, SMALL, tmp_path / "shards")
    problems = told.value.problems
    assert "spleen_000" in problems[0]
    assert "is truncated or damaged" in problems[0]
    assert "spleen_002" in problems[1]
    assert "is missing" in problems[1]


def test_folds_hold_each_case_out_once_and_share_none(spleen):
    held_out = []
    for fold in range(2):
        train, test = spleen.split(Folds(splits=2), fold)
        assert not set(train.ids) & set(test.ids)
        held_out += test.ids.tolist()
    assert sorted(held_out) == [0, 1, 2, 3]


@pytest.mark.parametrize("run", [None, (1,), (0, 2)])
@pytest.mark.parametrize("cases", [3, 7, 8])
def test_how_many_cases_are_held_out_is_known_before_they_are(run, cases):
    settings = Folds(splits=3, run=run)
    names = [f"case {number}" for number in range(cases)]
    parts = folds(names, splits=3, seed=settings.seed)
    held_out = sum(len(parts[fold].held_out) for fold in settings.numbers)
    assert settings.held_out(cases) == held_out


def test_how_many_cases_tasks_have_is_known_from_their_lists_and_of_phantoms_beforehand(root):
    assert Tasks(root=str(root)).sizes() == [(4, 0), (4, 0)]
    assert Tasks(tasks=(4, 9), cases=5, test_cases=2).sizes() == [(5, 2), (5, 2)]


def test_folds_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"run: 5, must be in 0\.\.4"):
        Folds(run=(0, 5))


@pytest.mark.parametrize("model", [None, UNET], ids=["planned_unet", "unet_3d"])
def test_a_training_learns_from_patches_and_is_evaluated_on_held_out_cases(spleen, model):
    found = made(pickle.loads(pickle.dumps(spleen)), model, tolerance_mm=2.0)
    before = {k: v.clone() for k, v in found.parts["model"].state_dict().items()}
    batch = next(iter(found.batches(0)))
    assert batch.images.shape == (2, 1, *spleen.configuration.patch_size)
    fit(found, log=lambda step, figures: None)
    after = found.parts["model"].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    figures, details = found.evaluate("test")
    assert {"test/dice", "test/dice/spleen", "test/nsd"} <= figures.keys()
    _, held_out = spleen.split(Folds(splits=2), 0)
    assert list(details["dice"]) == [case.name for case in held_out.cases]


def test_an_augmentation_is_of_the_plans_patches_and_the_same_when_a_training_goes_on(spleen):
    plain, augmented = (made(spleen, augmentation=name) for name in ("none", "nnunet"))
    first, second = (next(iter(each.batches(0))) for each in (plain, augmented))
    assert first.images.shape == second.images.shape
    assert not torch.equal(first.images, second.images)
    later = list(itertools.islice(augmented.batches(0), 3))[2]
    resumed = next(iter(made(spleen, augmentation="nnunet").batches(2)))
    assert torch.equal(later.images, resumed.images)
    assert torch.equal(later.labels, resumed.labels)


def test_a_rehearsal_names_a_network_that_cannot_take_the_patches():
    data, own = stand_in(SMALL, channels=1, labels=2)
    problems = Problems()
    rehearse_all(
        CONFIG
        | {
            "comparison": {"over": "model", "rivals": {"deep": UNET | {"depth": 5}}},
            "resources": {"training": {"workers": 1}},
        },
        METHODS,
        data,
        (1, *own.patch_size),
        problems,
        models=SEGMENTERS,
        whole=lambda config: planned(own, SEGMENTERS, config),
    )
    (problem,) = problems
    assert "comparison.rivals.deep" in problem
    assert "must be multiples of (32, 32, 32)" in problem
