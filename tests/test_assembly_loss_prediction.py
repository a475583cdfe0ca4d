import numpy as np
import pytest
import torch

from raykb.assembly import Data
from raykb.assembly.loss_prediction import LossTable, Selection, Tables, ThumbnailView
from raykb.comparison import Entry
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.engine.seeding import generator
from raykb.models import small_convnet

CONFIG = {
    "seed": 0,
    "data": {"name": "made"},
    "view": {"name": "crop_flip", "mean": [0.3], "std": [0.3], "padding": 0},
    "target": {"model": {"name": "small_convnet", "width": 4}},
    "hardening": {"name": "extra_four"},
    "selection": {"thumbnail": 8, "severities": [2, 4], "test_images": 4, "chunk": 5},
}
STATE = small_convnet(2, 1, width=4).state_dict()


def image_set(count=12):
    draw = generator(0, "images")
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
    ids = np.arange(count, dtype=np.int64)
    return ImageSet(images.numpy(), ids % 2, ids, ("a", "b"))


def tables():
    return Tables(CONFIG, Data(samples=12, classes=2, channels=1), STATE, "cpu", 1)


def entry(label="a", number=0, seed=3, **changes):
    return Entry(label, number, seed, 0, CONFIG | changes)


def test_on_the_validation_split_nothing_learns_from_what_is_judged_and_no_test_image_is_seen():
    selection = CONFIG["selection"] | {"judged_on": "valid"}
    own = Tables(CONFIG | {"selection": selection}, tables().data, STATE, "cpu", 1)
    train = image_set(20)
    learnt, asked = own.parts(train, image_set(40).subset(np.arange(20, 40)))
    assert (len(learnt), len(asked)) == (16, 4)
    assert set(learnt.ids) | set(asked.ids) == set(train.ids)
    assert not set(learnt.ids) & set(asked.ids)


def keys(made):
    return [(piece.name, piece.key) for piece in made.values()]


def test_every_corruption_has_a_piece_a_severity_and_each_chunk_of_training_images_one():
    own = tables()
    _, asked = own.parts(image_set(), image_set())
    seen = own.conditions(own.target(STATE), asked)
    assert len(asked) == 4
    assert len(seen) == 1 + 15 * 2
    assert {"clean/0", "fog/2", "fog/4"} < seen.keys()
    learnt = own.losses(own.target(STATE), image_set(), entry())
    assert [len(piece.arguments["images"]) for piece in learnt.values()] == [5, 5, 2]


def test_a_piece_stands_for_network_images_hardening_and_seed_and_for_no_label():
    own, images = tables(), image_set()
    target = own.target(STATE)
    first = keys(own.losses(target, images, entry()))
    assert keys(own.losses(target, images, entry("b", 1))) == first
    moved = own.target({name: value + 1 for name, value in STATE.items()})
    for changed in (
        own.losses(moved, images, entry()),
        own.losses(target, images, entry(seed=4)),
        own.losses(target, images, entry(hardening={"name": "same_fifteen"})),
        own.losses(target, image_set(11), entry()),
    ):
        assert keys(changed)[-1][1] != first[-1][1]


def test_a_box_of_one_grey_a_third_of_the_side_hides_a_part_of_a_thumbnail():
    view = ThumbnailView(CropFlipView(mean=[0.5], std=[0.25]))
    images = torch.zeros(50, 1, 30, 30, dtype=torch.uint8)
    arrays, ids = {"thumbnails": images, "losses": torch.zeros(50, 12)}, np.arange(50)
    made = view.train(arrays, ids, 0, 1)["thumbnails"]
    assert (made > 0).flatten(1).sum(1).max() == 100
    assert len(made.flatten(1).amax(1).unique()) > 25
    assert torch.equal(view.train(arrays, ids, 0, 1)["thumbnails"], made)
    assert not torch.equal(view.train(arrays, ids, 0, 2)["thumbnails"], made)
    plain = view.plain(arrays)["thumbnails"]
    torch.testing.assert_close(plain, torch.full((50, 1, 30, 30), -2.0))


def test_a_subset_of_a_table_is_read_as_the_table_is():
    table = LossTable({"losses": np.arange(24.0).reshape(4, 6), "thumbnails": np.zeros((4, 1))})
    own = table.subset(np.array([2, 0])).read(np.array([1]))
    assert own.arrays["losses"][0, 0] == 0
    assert table.read(np.array([2])).arrays["losses"][0, 0] == 12


def test_a_selection_refuses_all_that_is_wrong_at_once():
    with pytest.raises(ValueError, match=r"threshold: -1, .*thumbnail: 0, .*severities: \[6\], "):
        Selection(thumbnail=0, threshold=-1, severities=[6])
