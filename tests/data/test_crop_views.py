"""What the fields of self-supervised batches are made of."""

import numpy as np
import pytest
import torch

from raykb.data.crop_views import (
    CropsView,
    LabelledCropView,
    MultiCropView,
    TilesView,
    TurnedView,
)
from raykb.data.crops import RandomCrops
from raykb.data.views import CropFlipView, ResizedCropView

FORM = CropFlipView(mean=[0.5, 0.4, 0.3], std=[0.2, 0.1, 0.3])
IDS = np.arange(10, 110, 3)
IMAGES = torch.randint(0, 256, (len(IDS), 3, 9, 9), dtype=torch.uint8)
ORDERS = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]])


def made(view, images=IMAGES):
    arrays = view.train({"images": images}, IDS, 4, 2)
    return arrays, view.finish(arrays)


def test_crops_are_normalised_at_the_end():
    crops = RandomCrops(size=7)
    read, batch = made(CropsView(crops, FORM, 3))
    assert torch.equal(read["views"], crops.views(IMAGES, IDS, 4, 2, 3))
    wanted = FORM.plain(read["views"].flatten(0, 1)).unflatten(0, (len(IDS), 3))
    assert torch.equal(batch["views"], wanted)
    assert batch["ids"].tolist() == IDS.tolist()


def test_of_the_view_that_evaluations_take_crops_have_mean_and_deviation_alone():
    form = ResizedCropView(mean=[0.5], std=[0.25], size=40)
    read, batch = made(CropsView(RandomCrops(size=7), form))
    torch.testing.assert_close(batch["views"], (read["views"] / 255 - 0.5) / 0.25)


def test_a_labelled_crop_is_the_first_of_the_crops_and_has_its_class():
    crops, labels = RandomCrops(size=7), torch.arange(len(IDS)) % 3
    view = LabelledCropView(crops, FORM)
    read = view.train({"images": IMAGES, "labels": labels}, IDS, 4, 2)
    assert torch.equal(read["images"], crops.views(IMAGES, IDS, 4, 2)[:, 0])
    batch = view.finish(read)
    assert torch.equal(batch["images"], FORM.plain(read["images"]))
    assert torch.equal(batch["labels"], labels)


def test_images_without_labels_are_refused_where_labels_are_learnt_from():
    with pytest.raises(ValueError, match=r"labels: .* leave unlabelled.paths null"):
        made(LabelledCropView(RandomCrops(), FORM))


@pytest.mark.parametrize("local", [0, 3])
def test_small_crops_stand_beside_two_large_ones(local):
    crops = RandomCrops(local_size=4)
    read, batch = made(MultiCropView(crops, FORM, local))
    assert torch.equal(read["views"], crops.views(IMAGES, IDS, 4, 2))
    assert batch["views"].shape == (len(IDS), 2, 3, 9, 9)
    assert batch["local"].shape == (len(IDS), local, 3, 4, 4)
    assert batch["local"].dtype == torch.float32


def test_images_are_turned_by_as_many_quarters_as_their_label_says():
    read, batch = made(TurnedView(FORM))
    for image, turned, label in zip(IMAGES, read["images"], read["labels"].tolist(), strict=True):
        assert torch.equal(turned, image.rot90(label, (1, 2)))
    assert set(read["labels"].tolist()) == {0, 1, 2, 3}
    assert torch.equal(batch["images"], FORM.plain(read["images"]))


def test_images_that_are_not_square_cannot_be_turned():
    with pytest.raises(ValueError, match="must be square to be turned; set image_size"):
        made(TurnedView(FORM), IMAGES[..., 1:])


def test_tiles_lie_as_the_order_of_their_label_says():
    read, batch = made(TilesView(FORM, ORDERS))
    assert read["images"].shape == (len(IDS), 3, 8, 8)  # a pixel is left over
    assert set(read["labels"].tolist()) == {0, 1, 2}
    for image, laid, label in zip(IMAGES, read["images"], read["labels"].tolist(), strict=True):
        tiles = [image[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)]
        own = [tiles[which] for which in ORDERS[label]]
        rows = [torch.cat(own[:2], 2), torch.cat(own[2:], 2)]
        assert torch.equal(laid, torch.cat(rows, 1))
    assert torch.equal(batch["images"], FORM.plain(read["images"]))


@pytest.mark.parametrize(
    "view",
    [
        CropsView(RandomCrops(), FORM),
        MultiCropView(RandomCrops(), FORM, 1),
        TurnedView(FORM),
        TilesView(FORM, ORDERS),
    ],
)
def test_the_test_form_keeps_labels(view):
    labels = torch.arange(len(IDS))
    plain = view.plain({"images": IMAGES, "labels": labels})
    assert torch.equal(plain["images"], FORM.plain(IMAGES))
    assert torch.equal(plain["labels"], labels)
