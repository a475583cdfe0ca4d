"""A case through trained networks, and back to the grid and the geometry of its file."""

import dataclasses
import gzip
import json

import nibabel
import numpy as np
import pytest
import torch

from raykb.assembly import PlanSettings, opened, planned, predicted, prediction_key, prepared
from raykb.assembly.predictions import label_map
from raykb.assembly.segmentation import prepared_case
from raykb.config import build
from raykb.data.decathlon import read_case
from raykb.data.phantoms import write_phantoms
from raykb.data.volume_shards import Contents
from raykb.evaluate.components import Kept
from raykb.metrics.overlap import dice
from raykb.models import SEGMENTERS

SMALL = PlanSettings(width=4, patch=16, multiple=4, batch_size=2)
CONFIG = {"recipe": {"steps": 4}, "method": {"name": "dice_cross_entropy"}, "patches": {}}
CONFIG |= {"model": {"name": "planned_unet"}}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Phantoms of four modalities and of one, of thick slices along another axis of their files."""
    root = tmp_path_factory.mktemp("tasks")
    write_phantoms(root, tasks=[1, 9], cases=2, test_cases=1, size=16)
    return {
        number: prepared(task, SMALL, root / "shards")
        for number, task in zip([1, 9], opened(root), strict=True)
    }


def config(task):
    return planned(task.configuration, SEGMENTERS, CONFIG)


def weights(task, *seeds):
    """Return what trainings would have left."""

    def state(seed):
        torch.manual_seed(seed)
        sizes = {"classes": len(task.labels), "channels": task.volumes.channels}
        return build(SEGMENTERS, config(task)["model"], **sizes).state_dict()

    return [lambda seed=seed: state(seed) for seed in seeds]


def labels_of(task, case, *seeds, **options):
    """Return the file's array and the file, as NIfTI."""
    data = predicted(task, case, config(task), SEGMENTERS, weights(task, *seeds), **options)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asarray(image.dataobj), image


def one_hot(label, count):
    return np.moveaxis(np.eye(count, dtype=np.float32)[label], -1, 0)


def test_labels_come_back_to_where_they_were_from_another_order_of_axes_and_a_box(tasks):
    plan = tasks[9].plan
    own = dataclasses.replace(plan.configurations[0], spacing_mm=(1.0, 1.0, 1.0))
    plan = dataclasses.replace(plan, transpose=(2, 0, 1), configurations=(own,))
    image, label = np.zeros((1, 6, 8, 10), np.float32), np.zeros((6, 8, 10), np.uint8)
    image[0, 1:5, 2:6, 3:9], label[1:3, 2:4, 5:7], label[4, 5, 8] = 50.0, 1, 1
    contents = Contents(image, label, (1.0, 1.0, 1.0))
    after = prepared_case(plan, contents)
    assert after.image.shape[1:] == (6, 4, 4)
    assert np.array_equal(label_map(plan, contents, one_hot(after.label, 2)), label)


@pytest.mark.parametrize("number", [1, 9])
def test_labels_that_were_resampled_come_back_nearly_as_they_were(tasks, number):
    task = tasks[number]
    image, label, geometry = read_case(task.source, task.source.training[0])
    contents = Contents(image, label, geometry.spacing_mm)
    after = prepared_case(task.plan, contents)
    found = label_map(task.plan, contents, one_hot(after.label, len(task.labels)))
    assert found.shape == label.shape
    for value in np.unique(label[label > 0]):
        assert dice(found == value, label == value) > 0.9


@pytest.mark.parametrize("number", [1, 9])
def test_a_segmentation_lies_where_the_image_does_and_has_known_labels(tasks, number):
    task = tasks[number]
    (case,) = task.source.test
    labels, image = labels_of(task, case, 0)
    given = nibabel.load(case.image)
    assert labels.shape == given.shape[:3]
    assert np.allclose(image.affine, given.affine)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= set(range(len(task.labels)))


def test_trainings_are_joined_by_their_probabilities(tasks):
    task = tasks[9]
    (case,) = task.source.test
    one, other, both = (labels_of(task, case, *seeds)[0] for seeds in [(0,), (5,), (0, 5)])
    assert not np.array_equal(one, other)
    assert np.array_equal(labels_of(task, case, 5, 0)[0], both)
    alike = one == other
    assert np.array_equal(both[alike], one[alike])


def test_the_largest_piece_alone_stays_where_that_was_chosen(tasks):
    task = tasks[9]
    (case,) = task.source.test
    whole, _ = labels_of(task, case, 5)
    kept = Kept(labels=("spleen",))
    assert np.array_equal(labels_of(task, case, 5, kept=kept)[0], kept.of(whole, task.labels))
    assert kept.of(whole, task.labels).sum() < whole.sum()


def test_without_any_training_nothing_is_segmented(tasks):
    with pytest.raises(ValueError, match="weights: none, for no training of the method ended well"):
        labels_of(tasks[9], tasks[9].source.test[0])


def test_another_file_other_trainings_and_other_pieces_have_another_key(tasks, tmp_path):
    case = tasks[9].source.test[0]
    path = tmp_path / case.image.name
    path.write_bytes(case.image.read_bytes())
    moved = case._replace(image=path)
    keys = [prediction_key(moved, ["a", "b"], Kept()) for _ in range(2)]
    assert keys[0] == keys[1]
    assert json.dumps(keys[0])  # goes into a ledger
    keys.append(prediction_key(moved, ["a"], Kept()))
    keys.append(prediction_key(moved, ["a", "b"], Kept(foreground=True)))
    path.write_bytes(path.read_bytes() + b" ")
    keys.append(prediction_key(moved, ["a", "b"], Kept()))
    path.unlink()
    keys.append(prediction_key(moved, ["a", "b"], Kept()))
    assert len(set(keys)) == 5
