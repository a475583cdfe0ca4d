"""From a resolved config to a training without labels, and what its features are worth."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from raykb.assembly import SelfSupervised, network_of, self_supervised_data, training, untrained
from raykb.assembly.self_supervised import SEEN, view_of
from raykb.config import ConfigError, Problems
from raykb.data.crop_views import CropsView, MultiCropView, TilesView, TurnedView
from raykb.data.crops import RandomCrops
from raykb.data.decoding import encode_png
from raykb.data.feed import InPlace
from raykb.data.images import ImageSet
from raykb.data.parquet import write_shards
from raykb.data.views import CropFlipView
from raykb.engine.checkpoint import decode, encode
from raykb.engine.loop import Worker, fit
from raykb.engine.objective import Learner
from raykb.engine.seeding import seed_everything
from raykb.runtime.streams import TRANSPORTS
from raykb.segmentation.losses import VoxelBatch
from raykb.selfsup import METHODS
from raykb.selfsup.batch import (
    BoxesBatch,
    CorruptedBatch,
    MaskedBatch,
    MultiCropBatch,
    TilesBatch,
    TurnedBatch,
    ViewsBatch,
)

CLASSES = ("a", "b", "c")
SMALL = {
    "byol": {"projection": 5, "hidden": 7, "momentum": 0.9},
    "simclr": {"projection": 5, "hidden": 7},
}
VIEW = {"name": "crop_flip", "mean": [0.5], "std": [0.25]}
CROPS = {"name": "simclr", "size": 12, "scale": [0.5, 1.0]}


def images(count, seed):
    """Return images whose brightness tells the class, under noise."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = 40 + 80 * labels[:, None, None, None] + numbers.integers(-40, 40, (count, 1, 12, 12))
    return ImageSet(pixels.astype(np.uint8), labels, np.arange(count), CLASSES)


TRAIN, TEST = images(18, 0), images(15, 1)
FORM = CropFlipView(mean=[0.5], std=[0.25])
CROPS_VIEW = CropsView(RandomCrops(size=12, scale=(0.5, 1.0)), FORM)


def config(method="simclr", **recipe):
    return {
        "model": {"name": "small_convnet", "width": 4},
        "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 1.0e-3},
        "schedule": {"name": "cosine"},
        "method": {"name": method} | SMALL[method],
        "recipe": {"steps": 6, "batch_size": 8, "save_every": 0} | recipe,
        "view": VIEW,
        "crops": CROPS,
        "evaluate": {},
        "linear_probe": {"iterations": 5},
        "knn": {"neighbours": 3},
    }


READ = {"train": TRAIN, "test": TEST, "samples": len(TRAIN), "unlabelled": None}


def made(method="simclr", *, build=training, **recipe):
    seed_everything(0)
    given = {} if build is untrained else {"methods": METHODS, "data": self_supervised_data}
    view = None if build is untrained else CROPS_VIEW
    return build(Worker(), config=config(method, **recipe), seed=3, view=view, **given, **READ)


def run(training, start=0, **options):
    rows = []
    fit(training, start=start, log=lambda step, figures: rows.append(figures), **options)
    return rows


def equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ---------------------------------------------------------------------- trainings


@pytest.mark.parametrize("method", SMALL)
def test_a_resumed_training_ends_as_the_uninterrupted_one(method):
    whole, states = made(method, save_every=4), []
    run(whole, save=lambda state: states.append(encode(state)))
    resumed = made(method)
    start = resumed.restore(decode(states[0]))
    assert start == 4
    run(resumed, start)
    for name in ("model", "objective"):
        equal(whole.parts[name].state_dict(), resumed.parts[name].state_dict())
    assert whole.evaluate("test") == resumed.evaluate("test")


def test_the_classifier_stays_as_it_was_drawn_and_all_else_is_trained():
    whole = made()
    before = copy.deepcopy(whole.parts["model"].state_dict())
    run(whole)
    moved = {
        name: not torch.equal(value, before[name])
        for name, value in whole.parts["model"].state_dict().items()
    }
    last = len(whole.parts["model"]) - 1
    own = [f"{last}.weight", f"{last}.bias"]
    assert [name for name, has_moved in moved.items() if not has_moved] == own
    assert len(moved) > 2


def test_features_are_judged_on_the_way_and_at_the_end():
    whole = made(evaluate_every=3)
    rows = run(whole)
    names = {"spread", "linear_probe/top1", "linear_probe/train_top1", "knn/top1"}
    valid = [row for row in rows if "valid/knn/top1" in row]
    assert len(valid) == 2
    assert valid[0].keys() == {f"valid/{name}" for name in names}
    figures, details = whole.evaluate("test")
    assert figures == {name.replace("valid", "test"): value for name, value in valid[1].items()}
    assert details["knn"]["queries"][0] == 0


def test_untrained_is_what_the_initial_weights_of_the_others_are_worth():
    first, bare = made("byol"), made(build=untrained)
    equal(first.parts["model"].state_dict(), bare.parts["model"].state_dict())
    assert bare.evaluate("test") == first.evaluate("test")
    state = copy.deepcopy(bare.parts["model"].state_dict())
    assert run(bare) == []
    equal(bare.parts["model"].state_dict(), state)


# ---------------------------------------------------------------------- ranks


def steps_of(method, rank=0, size=1):
    """Return terms and gradients of some steps of a share of each batch, and the state."""
    whole = made(method)
    network, objective = whole.parts["model"], whole.parts["objective"]
    for layer in (*network.modules(), *objective.modules()):
        if isinstance(layer, torch.nn.BatchNorm2d):  # the network's own knows nothing of ranks
            layer.eval()
    learner = Learner(network, objective).double()  # few rows and batch norm magnify rounding
    trained = learner if size == 1 else DistributedDataParallel(learner)
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    seen = []
    for number in range(3):
        views = torch.randn(6, 2, 1, 12, 12, generator=torch.Generator().manual_seed(number))
        own = ViewsBatch(views.double().chunk(size)[rank], torch.arange(6).chunk(size)[rank])
        terms = trained(own, number)
        terms["loss"].backward()
        gradients = {n: p.grad.clone() for n, p in learner.named_parameters() if p.requires_grad}
        seen.append(({name: term.item() for name, term in terms.items()}, gradients))
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(network, number)
    return seen, learner.state_dict()


def share_of(method, size):
    return steps_of(method, dist.get_rank(), size)


@pytest.mark.parametrize("method", SMALL)
def test_two_ranks_with_half_of_each_batch_train_as_one_with_the_whole(gloo, method):
    whole, state = steps_of(method)
    for part, own_state in gloo.run(share_of, method, 2, size=2):
        for (terms, gradients), (mine, my_gradients) in zip(whole, part, strict=True):
            assert mine == pytest.approx(terms, rel=1e-8, abs=1e-10)
            for name, gradient in gradients.items():
                torch.testing.assert_close(my_gradients[name], gradient, rtol=1e-6, atol=1e-9)
        for name, value in state.items():
            torch.testing.assert_close(own_state[name], value, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------------- views


class Asks:
    """An objective, as far as a view looks at it."""

    def __init__(self, sees, **about):
        self.sees = sees
        self.__dict__ |= about


def test_the_kind_of_batch_says_which_view_makes_it():
    orders = np.array([[0, 1, 2, 3]])
    assert view_of(Asks(ViewsBatch), config()) == CROPS_VIEW
    assert view_of(Asks(MultiCropBatch, local_views=3), config()).local_views == 3
    assert isinstance(view_of(Asks(MultiCropBatch, local_views=3), config()), MultiCropView)
    assert isinstance(view_of(Asks(TurnedBatch), config()), TurnedView)
    tiles = view_of(Asks(TilesBatch, orders=orders), config())
    assert isinstance(tiles, TilesView)
    assert tiles.orders is orders


@pytest.mark.parametrize(
    ("sees", "about"),
    [
        (ViewsBatch, {}),
        (MultiCropBatch, {"local_views": 2}),
        (TurnedBatch, {}),
        (TilesBatch, {"orders": np.array([[0, 1, 2, 3], [3, 2, 1, 0]])}),
        (MaskedBatch, {"patch": 4, "mask_ratio": 0.5}),
        (CorruptedBatch, {"align": 1, "longest": 0.5}),
        (BoxesBatch, {"least": 2, "count": 3}),
    ],
)
def test_a_view_gives_all_that_its_batch_has(sees, about):
    view = view_of(Asks(sees, **about), config())
    arrays = {"images": torch.from_numpy(TRAIN.images)}
    assert view.finish(view.train(arrays, TRAIN.ids, 0, 0)).keys() >= set(sees._fields)


def test_what_each_method_sees_is_made():
    assert {method.sees for method in METHODS.values()} <= SEEN.keys()


def test_a_batch_that_nothing_makes_is_refused():
    with pytest.raises(ValueError, match="Asks learns from a VoxelBatch, which nothing makes"):
        view_of(Asks(VoxelBatch), config())


# ---------------------------------------------------------------------- data


def shards(folder, size=12, count=20):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    write_shards(folder, [(n, encode_png(image), 0) for n, image in enumerate(pixels)], ["one"])
    return str(folder)


def opened(data, **unlabelled):
    problems = Problems()
    found = SelfSupervised.opened({"data": data, "unlabelled": unlabelled}, problems)
    problems.refuse("this run cannot be")
    return found


def test_without_others_the_training_images_of_the_data_set_are_learnt_from(tmp_path):
    path = shards(tmp_path)
    data = opened({"name": "parquet", "train": path, "test": path})
    assert data.count == 20
    assert data.record == {"schema": 1, "images": 20, "digest": None}
    assert data.stream({}, CROPS_VIEW, 0, TRANSPORTS) is None
    assert not data.stand_in.supervised


def test_others_come_by_a_stream_of_their_own(tmp_path):
    path, others = shards(tmp_path / "a"), shards(tmp_path / "b", count=30)
    data = opened({"name": "parquet", "train": path, "test": path}, paths=others)
    assert data.count == 30
    assert data.record["digest"]
    settings = config() | {"stream": {"name": "in_place"}}
    feed = data.stream(settings, CROPS_VIEW, 5, TRANSPORTS)
    assert isinstance(feed, InPlace)
    (batch,) = feed.batches(0, Worker(), 1)
    assert batch["views"].shape == (8, 2, 1, 12, 12)
    seed_everything(0)
    given = {"methods": METHODS, "data": self_supervised_data, "view": CROPS_VIEW}
    read = READ | {"unlabelled": feed, "samples": data.count}
    rows = run(training(Worker(), config=config(), seed=5, **given, **read))
    assert rows


def test_others_of_another_shape_are_refused(tmp_path):
    path, others = shards(tmp_path / "a"), shards(tmp_path / "b", size=16)
    with pytest.raises(ConfigError, match=r"\(1, 16, 16\), those of the data set \(1, 12, 12"):
        opened({"name": "parquet", "train": path, "test": path}, paths=others)


def test_a_network_without_features_is_refused_before_it_is_trained():
    data = self_supervised_data(config=config(), seed=0, view=CROPS_VIEW, **READ)
    models = {"flat": lambda classes, channels: torch.nn.Linear(classes, channels)}
    with pytest.raises(ValueError, match=r"has no .* which a training without labels needs"):
        network_of(config() | {"model": {"name": "flat"}}, data, models)
