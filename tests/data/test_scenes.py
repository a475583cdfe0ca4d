"""What scenes say of themselves is what their pixels show."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from raykb.data.images import ImageSet
from raykb.data.scenes import Composition, Scenes, as_scenes, pasted, shuffled

SIDE, SIZE = 12, 30


def flat(count=60, channels=1):
    """Return images of one value each, which is their number + 50; ids are 10 times the number."""
    numbers = np.arange(count)
    pixels = np.broadcast_to(50 + numbers[:, None, None, None], (count, channels, SIDE, SIDE))
    return ImageSet(pixels.astype(np.uint8), numbers % 3, 10 * numbers, ("a", "b", "c"))


def composed(images, seed=0, *, canvas=SIZE / SIDE, **settings):
    return Scenes(images, Composition(canvas=canvas, **settings), seed)


def read(scenes, rows=None):
    return scenes.read(np.arange(len(scenes)) if rows is None else np.array(rows)).arrays


@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_is_the_extent_of_its_object_and_outside_of_boxes_is_ground(channels):
    found = read(composed(flat(channels=channels), background="constant"))
    assert found["images"].shape == (60, channels, SIZE, SIZE)
    for image, boxes, labels in zip(*found.values(), strict=True):
        ground = image.copy()
        for (left, top, right, bottom), label in zip(boxes.astype(int), labels, strict=True):
            if label >= 0:
                own = image[:, top:bottom, left:right]
                assert own.min() == own.max() >= 50
                assert label == (own.min() - 50) % 3
                assert SIDE * 0.6 - 0.5 <= right - left <= SIDE
                ground[:, top:bottom, left:right] = 0
        assert not ground.any()


def test_a_texture_is_patches_of_another_image():
    found = read(composed(flat(), objects=(1, 1)))
    others = []
    for image, boxes in zip(found["images"], found["boxes"].astype(int), strict=True):
        (left, top, right, bottom) = boxes[0]
        ground = np.ones((SIZE, SIZE), bool)
        ground[top:bottom, left:right] = False
        assert image[0][ground].min() == image[0][ground].max()
        others.append(image[0][ground][0])
    assert min(others) >= 50
    assert len(set(others)) > 20


def test_shuffled_patches_are_those_at_the_drawn_places():
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 7, 9), generator=numbers)
    places = torch.rand(4, 2, 9, generator=numbers)
    found = shuffled(images, places, 2)
    for image, (ys, xs), made in zip(images, places.tolist(), found, strict=True):
        for tile in range(9):
            y, x = int(ys[tile] * 6), int(xs[tile] * 8)
            row, column = 2 * (tile // 3), 2 * (tile % 3)
            own = made[:, row : row + 2, column : column + 2]
            assert torch.equal(own, image[:, y : y + 2, x : x + 2])


def test_an_image_is_pasted_as_it_is_or_resized_as_a_whole():
    images = torch.randint(256, (2, 3, 8, 6), generator=torch.Generator().manual_seed(0))
    images, ground = images.to(torch.uint8), torch.full((2, 3, 20, 20), 7, dtype=torch.uint8)
    boxes = torch.tensor([[2.0, 5, 8, 13], [11, 0, 20, 12]])
    found = pasted(ground, images, boxes)
    assert torch.equal(found[0, :, 5:13, 2:8], images[0])
    wanted = F.interpolate(images[1:].float(), (12, 9), mode="bilinear", antialias=True)
    assert (found[1, :, :12, 11:] - wanted[0]).abs().max() <= 1
    assert (found[1, :, 12:] == 7).all()
    assert (found[1, :, :, :11] == 7).all()


@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_boxes_lie_within_and_overlap_no_more_than_they_may(overlap):
    settings = {"objects": (4, 4), "scale": (0.9, 1.2), "overlap": overlap}
    found = read(composed(flat(200), **settings))
    boxes, there = torch.from_numpy(found["boxes"]), torch.from_numpy(found["labels"]) >= 0
    assert boxes[there].min() == 0
    assert boxes[there].max() == SIZE
    both = there[:, :, None] & there[:, None] & ~torch.eye(4, dtype=torch.bool)
    most = box_iou(boxes, boxes)[both].max()
    assert overlap - 0.05 < most <= overlap


def test_an_object_without_room_is_not_there_but_for_the_first():
    found = read(composed(flat(), objects=(4, 4), scale=(1.2, 1.2)))
    there = found["labels"] >= 0
    assert there[:, 0].all()
    assert 0 < there[:, 3].mean() < 1
    assert (found["boxes"][~there] == -1).all()


def test_there_are_from_the_least_to_the_most_objects():
    found = read(composed(flat(200), canvas=5.0, objects=(2, 4)))
    counts = (found["labels"] >= 0).sum(1)
    assert np.bincount(counts, minlength=5)[:2].sum() == 0
    assert (np.bincount(counts)[2:] > 40).all()


def test_scenes_have_as_many_of_each_class_as_images_and_the_others_are_drawn_evenly():
    labels = read(composed(flat(180), canvas=5.0, objects=(3, 3)))["labels"]
    assert np.bincount(labels[:, 0]).tolist() == [60, 60, 60]
    drawn = np.bincount(labels[:, 1:].ravel()[labels[:, 1:].ravel() >= 0])
    assert np.abs(drawn - 120).max() < 4 * (360 * 2 / 9) ** 0.5


def test_a_scene_belongs_to_seed_and_id_in_any_company():
    scenes = composed(flat(), 3)
    whole, part = read(scenes), scenes.subset(np.array([40, 7]))
    assert part.ids.tolist() == [400, 70]
    for name, values in read(pickle.loads(pickle.dumps(part))).items():
        assert np.array_equal(values, whole[name][[40, 7]]), name
        assert np.array_equal(read(scenes, [7])[name][0], whole[name][7]), name
    assert not np.array_equal(read(composed(flat()))["boxes"], whole["boxes"])


def test_in_the_place_of_images_stand_their_scenes_with_the_label_of_the_first_object():
    images, how = flat(), Composition(objects=(1, 2))
    found, scenes = as_scenes(images, how, 3), Scenes(images, how, 3).read(np.arange(len(images)))
    assert (found.images == scenes.arrays["images"]).all()
    assert (found.labels == images.labels).all()
    assert (found.ids == images.ids).all()


def test_what_means_nothing_is_refused():
    with pytest.raises(ValueError, match=r"objects: \(2, 1\), must be \(least.*; scale: .*; overl"):
        Composition(objects=(2, 1), scale=(0.0, 1.0), overlap=2.0)
    with pytest.raises(ValueError, match="background: 'sky', must be 'constant' or 'texture'"):
        Composition(background="sky")
    with pytest.raises(ValueError, match=r"scale: \(1.0, 1.5\), must be .* to the canvas of 1.2"):
        Composition(canvas=1.2, scale=(1.0, 1.5))
