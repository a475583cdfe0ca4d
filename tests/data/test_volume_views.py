"""Patches of volumes: where they are, whoever crops them and whenever."""

import numpy as np
import pytest
import torch
from shared_volumes import geometry, write_task

from raykb.data.decathlon import read_task
from raykb.data.feed import InPlace, plain_batches
from raykb.data.loader import Loader
from raykb.data.nifti import write_nifti
from raykb.data.order import Endless
from raykb.data.source import Selected, Source
from raykb.data.volume_augmentations import NNUNetAugmentation
from raykb.data.volume_views import PatchView
from raykb.data.volumes import crop, open_volumes
from raykb.engine.loop import Worker

CPU = torch.device("cpu")
SIZE = (4, 5, 6)
SHAPES = [(9, 11, 13), (12, 8, 10), (9, 11, 13), (20, 6, 7), (3, 4, 5)]


class Shifted:
    """Adds a number of its own to each patch, and turns labels round."""

    draws, reach = 2, SIZE

    def __call__(self, images, labels, uniforms):
        return images + uniforms[:, :1, None, None, None].to(images), labels.flip(1)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Five cases of two channels, whose voxels are numbered; the last is smaller than a patch."""
    folder = write_task(
        tmp_path_factory.mktemp("task"), cases=5, tests=0, channels=2, shapes=SHAPES
    )
    return open_volumes(read_task(folder), folder / "shards")


def source(volumes, *, size=SIZE, batch_size=4, seed=3, views_by="workers", examples=None, **view):
    examples = volumes if examples is None else examples
    order = Endless(len(examples), batch_size, seed)
    return Source(examples, order, PatchView(volumes, size, **view), seed, views_by)


def finished(of, steps, rank=0, size=1):
    return [of.finish(of.read(step, rank, size), CPU) for step in steps]


def same(first, second):
    return all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(first, second, strict=True)
    )


def patches(volumes, view, samples, *, seed=0, epochs=1):
    """Return the training views of cases in each of some epochs."""
    ids = np.array(samples)
    arrays = {"cases": torch.from_numpy(ids)}
    made = [view.train(arrays, ids, seed, epoch) for epoch in range(epochs)]
    return {name: torch.cat([one[name] for one in made]).numpy() for name in made[0]}


def test_a_patch_is_a_slice_of_its_case_in_all_channels_and_in_the_label(volumes):
    made = patches(volumes, PatchView(volumes, SIZE), [0, 1, 2, 3], epochs=20)
    assert made["images"].dtype == np.int16
    assert made["labels"].dtype == np.uint8
    seen = set()
    for number, (image, label) in enumerate(zip(made["images"], made["labels"], strict=True)):
        case = volumes.cases[number % 4]
        box = [np.zeros_like(image), np.zeros_like(label)]
        start = found(image, case)
        crop(case.image, start, box[0])
        crop(case.label, start, box[1])
        assert np.array_equal(image, box[0])
        assert np.array_equal(label, box[1])
        seen.add((number % 4, *start))
    assert len(seen) > 50  # of 80, a third of which are about one of six voxels


def found(image, case):
    """Where a patch of numbered voxels begins; what is short of it is filled in the middle."""
    room = np.array(case.shape) - image.shape[1:]
    before = np.maximum(-(room // 2), 0)  # filled voxels
    first = image[(0, *before)]
    place = np.flatnonzero(np.ravel(case.image[0]) == first)
    return [int(n) for n in np.array(np.unravel_index(place[0], case.shape)) - before]


def test_a_volume_that_is_smaller_is_filled_up_around(volumes):
    view = PatchView(volumes, (5, 4, 9), fill=-5)
    made = patches(volumes, view, [4])  # of (3, 4, 5)
    [image], [label] = made["images"], made["labels"]
    assert np.array_equal(image[:, 1:4, :, 2:7], volumes.cases[4].image)
    assert np.array_equal(label[1:4, :, 2:7], volumes.cases[4].label)
    outside = np.ones(image.shape[1:], bool)
    outside[1:4, :, 2:7] = False
    assert (image[:, outside] == -5).all()
    assert (label[outside] == 0).all()


def middle(patches):
    z, y, x = (n // 2 for n in patches.shape[1:])
    return patches[:, z, y, x]


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """A large case with three voxels of label 1 and one of 2, and one with none."""
    folder = write_task(
        tmp_path_factory.mktemp("rare"), cases=2, tests=0, shapes=[(24, 24, 24)] * 2
    )
    task = read_task(folder)
    label = np.zeros((24, 24, 24), np.uint8)
    for value, *place in ((1, 8, 9, 10), (1, 12, 12, 12), (1, 15, 9, 9), (2, 10, 15, 14)):
        label[tuple(place)] = value
    write_nifti(task.training[0].label, label, geometry((24, 24, 24)))
    write_nifti(task.training[1].label, label * 0, geometry((24, 24, 24)))
    return open_volumes(task, folder / "shards")


def test_a_share_of_patches_has_foreground_in_its_middle_each_label_as_likely(rare):
    draws = 1500
    for share in (0.0, 0.33, 1.0):
        view = PatchView(rare, (3, 3, 3), foreground_share=share)
        made = middle(patches(rare, view, [0], epochs=draws)["labels"])
        several = 5 * np.sqrt(draws * share * (1 - share)) + 5  # five standard deviations
        assert abs((made > 0).sum() - draws * share) <= several
        assert abs((made == 2).sum() - draws * share / 2) <= several + 100 * share
    view = PatchView(rare, (3, 3, 3), foreground_share=1.0)
    assert patches(rare, view, [1])["labels"].max() == 0  # nothing to be put around


def test_each_voxel_of_a_label_is_as_likely(rare):
    view = PatchView(rare, (1, 1, 1), foreground_share=1.0)
    made = patches(rare, view, [0], epochs=1200)
    numbers = made["images"][made["labels"][:, None] == 1]
    assert len(np.unique(numbers)) == 3
    assert np.unique(numbers, return_counts=True)[1].min() > 150  # of 200


def test_a_step_is_the_same_whatever_came_before_it_and_whoever_makes_it(volumes):
    of = source(volumes)
    steps = finished(of, range(8))
    assert same(finished(source(volumes), [6, 2]), [steps[6], steps[2]])
    assert same(finished(source(volumes, views_by="trainer"), range(8)), steps)
    assert source(volumes, views_by="trainer").read(0).arrays.keys() == {"cases"}
    halves = [finished(of, range(8), rank, 2) for rank in range(2)]
    for rank in range(2):
        assert same(halves[rank], [{n: a[rank::2] for n, a in fields.items()} for fields in steps])
    assert steps[0]["images"].dtype == torch.float32
    assert steps[0]["labels"].dtype == torch.int64
    assert not torch.equal(steps[0]["images"], finished(source(volumes, seed=4), [0])[0]["images"])


def test_a_patch_is_a_function_of_seed_epoch_and_case_alone(volumes):
    view = PatchView(volumes, SIZE)
    alone, among = (patches(volumes, view, ids, epochs=3) for ids in ([2], [1, 2, 4]))
    assert np.array_equal(alone["images"], among["images"][1::3])
    assert len({image.tobytes() for image in alone["images"]}) == 3
    twin = patches(volumes, view, [0, 2])  # cases of one shape and other ids
    assert not np.array_equal(twin["images"][0], twin["images"][1])


@pytest.mark.parametrize("select", [Selected, lambda volumes, rows: volumes.subset(rows)])
def test_a_selection_of_cases_has_the_patches_that_they_have_among_all(volumes, select):
    rows = np.array([3, 1])
    of = source(volumes, examples=select(volumes, rows), batch_size=2)
    piece = of.read(0)
    assert sorted(piece.ids.tolist()) == [1, 3]
    expected = patches(volumes, of.view, piece.ids.tolist(), seed=3)
    assert np.array_equal(piece.arrays["images"], expected["images"])


def test_processes_beside_the_training_crop_the_same(volumes):
    of = source(volumes, augmentation=Shifted())
    loader = Loader(of, workers=1)
    here, there = (list(feed.batches(2, Worker(), 5)) for feed in (InPlace(of), loader))
    loader.close()
    assert same(here, there)


def test_what_travels_are_patches_in_their_own_type(volumes):
    of = source(volumes)
    voxels = int(np.prod(SIZE))
    assert of.step_bytes(0) == of.read(0).nbytes == 4 * (voxels * (2 * 2 + 1) + 8 + 8)


def test_an_augmentation_is_given_numbers_of_each_patch_on_the_device(volumes):
    plain, augmented = source(volumes), source(volumes, augmentation=Shifted())
    for before, after in zip(finished(plain, range(3)), finished(augmented, range(3)), strict=True):
        shifts = (after["images"] - before["images"]).flatten(1)
        assert torch.allclose(shifts, shifts[:, :1].expand_as(shifts), atol=1e-3)
        assert len(shifts[:, 0].unique()) == 4
        assert torch.equal(after["labels"], before["labels"].flip(1))
        assert after.keys() == {"images", "labels"}


def test_what_lies_about_a_patch_is_cropped_with_it(volumes):
    """Also at the borders of a case; and steps are the same whatever came before them."""
    never = dict.fromkeys(("mirroring", "noise", "gamma", "inverted_gamma", "blur"), 0.0)
    never |= dict.fromkeys(("scaling", "brightness", "contrast", "low_resolution"), 0.0)
    voxels = {"size": SIZE, "spacing_mm": (2.5, 0.8, 0.8)}
    still = NNUNetAugmentation(**voxels, **never | {"rotation": 1e-12})
    assert min(np.subtract(still.reach, SIZE)) > 0
    plain, augmented = source(volumes), source(volumes, augmentation=still)
    assert same(finished(plain, range(6)), finished(augmented, range(6)))
    of = source(volumes, augmentation=NNUNetAugmentation(**voxels))
    steps = finished(of, range(6))
    assert not same(steps, finished(plain, range(6)))
    assert same(finished(of, [5, 2]), [steps[5], steps[2]])


def test_the_test_form_is_whole_volumes(volumes):
    view = PatchView(volumes, SIZE)
    steps = list(plain_batches(volumes, view, CPU, batch_size=1))
    assert [tuple(fields["images"].shape) for fields in steps] == [(1, 2, *s) for s in SHAPES]
    for fields, case in zip(steps, volumes.cases, strict=True):
        assert fields["images"].dtype == torch.float32
        assert np.array_equal(fields["images"][0].numpy(), case.image)
        assert np.array_equal(fields["labels"][0].numpy(), case.label)
    pair = view.plain({"cases": torch.tensor([0, 2])})
    assert pair["images"].shape == (2, 2, *SHAPES[0])
    with pytest.raises(ValueError, match=r"are no batch; take one at a time, with a batch_size"):
        view.plain({"cases": torch.tensor([0, 1])})


def test_cases_without_labels_can_be_tested_on_and_not_trained_on(tmp_path):
    task = read_task(write_task(tmp_path, cases=1))
    test = open_volumes(task, tmp_path / "shards", part="test")
    view = PatchView(test, SIZE)
    assert view.plain({"cases": torch.tensor([0])}).keys() == {"images"}
    with pytest.raises(ValueError, match="volumes: have no labels; patches are taken of the tr"):
        patches(test, view, [0])


def test_what_a_view_cannot_be_is_told_at_once(volumes):
    with pytest.raises(ValueError, match=r"foreground_share: 1.5, must be in 0..1") as told:
        PatchView(volumes, (4, 0, 4), foreground_share=1.5, fill=0.5)
    assert "size: (4, 0, 4), must be three positive numbers: Z, Y and X" in str(told.value)
    assert "fill: 0.5, must be a number of the volumes' type, int16" in str(told.value)
    with pytest.raises(ValueError, match=r"augmentation: has a reach of \(4, 5, 6\), must be larg"):
        PatchView(volumes, (4, 4, 8), augmentation=Shifted())
    for fill in (-40_000, 40_000):
        with pytest.raises(ValueError, match=f"fill: {fill}, must be"):
            PatchView(volumes, SIZE, fill=fill)
