"""The contracts of examples and views: a row here for each kind, a case for each table's row.

What a row is made into is a function of seed, epoch and id, whoever makes it in whatever company:
all of the house's promises about going on, many workers and rows of several epochs rest on that.
"""

import pickle

import numpy as np
import pytest
import torch

from raykb.augment.augmentations import AUGMENTATIONS
from raykb.augment.policy import Policy
from raykb.data.box_views import BoxesView
from raykb.data.crop_views import (
    CropsView,
    LabelledCropView,
    MultiCropView,
    TilesView,
    TurnedView,
)
from raykb.data.crops import CROPS
from raykb.data.decathlon import read_task
from raykb.data.decoding import encode_png
from raykb.data.image_views import ClassifierView, WeakStrongView, WeakView
from raykb.data.images import ImageSet
from raykb.data.mask_views import CorruptedView, MaskedView
from raykb.data.order import Endless
from raykb.data.parquet import write_shards
from raykb.data.phantoms import write_phantoms
from raykb.data.sharded_images import ShardedImages
from raykb.data.source import Selected, Source
from raykb.data.strong import PAIRS
from raykb.data.views import VIEWS
from raykb.data.volume_augmentations import PATCH_AUGMENTATIONS
from raykb.data.volume_views import PatchView
from raykb.data.volumes import open_volumes

COUNT, SEED = 7, 5
RGB = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]}
POLICY = Policy([[("Rotate", 0.7, 0.9), ("Invert", 0.5, 0.5)], [("Color", 0.8, 0.2)]])


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    """Seven examples of each kind; ids are not their rows."""
    folder = tmp_path_factory.mktemp("examples")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (COUNT, 3, 12, 12), dtype=np.uint8)
    ids = np.arange(100, 100 + 3 * COUNT, 3)
    rows = [(int(sample), encode_png(image), 0) for sample, image in zip(ids, images, strict=True)]
    write_shards(folder / "shards", rows, ["one"])
    (task,) = write_phantoms(folder / "phantoms", tasks=[4], cases=COUNT, size=16)
    return {
        "images": ImageSet(images, np.arange(COUNT) % 3, ids, ("a", "b", "c")),
        "sharded images": ShardedImages(paths=str(folder / "shards")),
        "volumes": open_volumes(read_task(task), folder / "volumes"),
    }


KINDS = ("images", "sharded images", "volumes")


@pytest.fixture(params=KINDS)
def examples(request, kinds):
    return kinds[request.param]


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert np.array_equal(np.asarray(value), np.asarray(second[name])), name


# ---------------------------------------------------------------------- examples


def test_each_has_an_id_of_its_own(examples):
    assert len(examples) == COUNT
    assert examples.ids.dtype == np.int64
    assert examples.ids.shape == (COUNT,)
    assert len(np.unique(examples.ids)) == COUNT


def test_rows_are_read_in_the_order_asked_for_and_alike_in_any_company(examples):
    rows = np.array([5, 0, 3])
    found = examples.read(rows)
    assert found.ids.tolist() == examples.ids[rows].tolist()
    assert found.problems == ["", "", ""]
    for place, row in enumerate(rows):
        alone = examples.read(np.array([row]))
        same({name: array[place] for name, array in found.arrays.items()}, _first(alone.arrays))


def _first(arrays):
    return {name: array[0] for name, array in arrays.items()}


def test_what_was_read_may_be_changed(examples):
    rows = np.arange(COUNT)
    before = examples.read(rows).arrays
    for array in examples.read(rows).arrays.values():
        array.fill(1)
    same(examples.read(rows).arrays, before)


def test_a_subset_and_a_selection_are_examples_of_the_same_rows(examples):
    rows = np.array([6, 2, 4])
    for part in (examples.subset(rows), Selected(examples, rows)):
        assert part.ids.tolist() == examples.ids[rows].tolist()
        same(part.read(np.array([2, 0])).arrays, examples.read(np.array([4, 6])).arrays)


def test_they_travel_to_workers(examples):
    there = pickle.loads(pickle.dumps(examples))
    assert there.ids.tolist() == examples.ids.tolist()
    same(there.read(np.array([1, 6])).arrays, examples.read(np.array([1, 6])).arrays)


# ---------------------------------------------------------------------- views


def views():
    """Return how each view is made, of the examples that it is for, by name."""
    form = VIEWS["crop_flip"](**RGB)
    found = {
        f"classifier {name}": ("images", lambda of, name=name: ClassifierView(VIEWS[name](**RGB)))
        for name in VIEWS
    }
    for name, augmentation in AUGMENTATIONS.items():
        about = {"policy": "policy", "searched_policy": "searched"}.get(name)
        made = augmentation(seed=3, **({about: POLICY} if about else {}))
        found[f"augmented {name}"] = ("images", lambda of, made=made: ClassifierView(form, made))
    for name, pair in PAIRS.items():
        found[f"weak {name}"] = ("images", lambda of, pair=pair: WeakView(pair(), form))
        for strong in (1, 2):
            found[f"weak and {strong} strong {name}"] = (
                "sharded images",
                lambda of, pair=pair, strong=strong: WeakStrongView(
                    pair(strong_views=strong), form
                ),
            )
    for name, make in PATCH_AUGMENTATIONS.items():
        own = make(size=(4, 8, 8), spacing_mm=(2.0, 1.0, 1.0))
        found[f"patches {name}"] = (
            "volumes",
            lambda of, own=own: PatchView(of, (4, 8, 8), augmentation=own),
        )
    for name, crops in CROPS.items():
        each = crops(blur=(0.5, 0.1), solarize=(0.0, 0.2))
        found[f"crops {name}"] = ("sharded images", lambda of, each=each: CropsView(each, form, 3))
        found[f"crops of two sizes {name}"] = (
            "images",
            lambda of, each=each: MultiCropView(each, form, 2),
        )
    found["labelled crop"] = ("images", lambda of: LabelledCropView(CROPS["simclr"](), form))
    found["turned"] = ("images", lambda of: TurnedView(form))
    found["tiles"] = ("images", lambda of: TilesView(form, np.array([[0, 1, 2, 3], [3, 1, 2, 0]])))
    plain = CROPS["simclr"]()
    for name, hiding in {
        "masked": MaskedView(plain, form, 4, 0.5),
        "corrupted": CorruptedView(plain, form, 3),
        "boxes": BoxesView(plain, form, count=3, least=3, jitter=0.1),
    }.items():
        found[name] = ("sharded images", lambda of, hiding=hiding: hiding)
    return found


MADE = views()


@pytest.fixture(params=MADE)
def viewed(request, kinds):
    """Return examples and a view of them."""
    kind, make = MADE[request.param]
    return kinds[kind], make(kinds[kind])


def train(viewed, rows, epoch=0, seed=SEED):
    examples, view = viewed
    arrays, ids, _ = examples.read(np.array(rows))
    arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return view.train(arrays, ids, seed, epoch)


def test_a_row_is_made_alike_in_any_company(viewed):
    together = train(viewed, range(COUNT), epoch=2)
    for row in (0, 4):
        alone = train(viewed, [row], epoch=2)
        same({name: array[row] for name, array in together.items()}, _first(alone))


def test_seed_and_epoch_alone_decide(viewed):
    made = train(viewed, range(COUNT), epoch=1)
    torch.rand(17)  # the global generator has no part in it
    same(train(viewed, range(COUNT), epoch=1), made)


def test_the_input_stays_as_it_is(viewed):
    examples, view = viewed
    arrays, ids, _ = examples.read(np.arange(COUNT))
    arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    before = {name: array.clone() for name, array in arrays.items()}
    view.finish(view.train(arrays, ids, SEED, 0))
    view.plain({name: array[:1] for name, array in arrays.items()})
    same(arrays, before)


def test_rows_of_several_epochs_get_what_each_epoch_gives(viewed):
    examples, view = viewed
    order = Endless(COUNT, 4, SEED)  # its second step has rows of two epochs
    source = Source(examples, order, view, SEED)
    rows, epochs = order.at(1)
    assert sorted(set(epochs.tolist())) == [0, 1]
    piece = source.read(1)
    for place, (row, epoch) in enumerate(zip(rows.tolist(), epochs.tolist(), strict=True)):
        alone = _first(train(viewed, [row], epoch=epoch))
        same({name: array[place] for name, array in piece.arrays.items()}, alone)


def test_workers_and_trainer_make_the_same_batch(viewed):
    examples, view = viewed
    batches = []
    for views_by in ("workers", "trainer"):
        source = Source(examples, Endless(COUNT, 4, SEED), view, SEED, views_by)
        batches.append(source.finish(source.read(1), torch.device("cpu")))
    same(*batches)


def test_views_travel_to_workers(viewed):
    examples, view = viewed
    there = (examples, pickle.loads(pickle.dumps(view)))
    same(train(there, range(COUNT)), train(viewed, range(COUNT)))
