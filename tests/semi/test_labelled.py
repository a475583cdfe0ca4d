import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raykb.data.images import ImageSet
from raykb.data.strong import WeakStrong
from raykb.semi.labelled import Labelled, order
from raykb.semi.recipe import SemiRecipe

CPU = torch.device("cpu")


def images(count=5):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    numbers = np.arange(count)
    return ImageSet(pixels, numbers % 3, 10 * numbers, ("a", "b", "c"))


@pytest.mark.parametrize(("count", "size"), [(5, 2), (5, 5), (5, 13), (40, 64)])
def test_every_epoch_has_every_sample_once(count, size):
    steps = [order(count, size, 0, step) for step in range(2 * count)]
    epochs, positions = (np.concatenate(part) for part in zip(*steps, strict=True))
    assert (np.diff(epochs) >= 0).all()
    for epoch in range(2 * size):
        assert sorted(positions[epochs == epoch]) == list(range(count))


def test_the_order_depends_on_seed_and_epoch():
    first, again = order(40, 40, 0, 0)[1], order(40, 40, 0, 0)[1]
    assert (first == again).all()
    assert not (first == order(40, 40, 1, 0)[1]).all()
    assert not (first == order(40, 40, 0, 1)[1]).all()


def test_ranks_share_each_batch():
    source = Labelled(images(), 6, WeakStrong(), 3)
    for step in range(4):
        whole = source.at(step, 0, 1, CPU)
        parts = [source.at(step, rank, 2, CPU) for rank in range(2)]
        for rank, (views, labels) in enumerate(parts):
            assert torch.equal(views, whole[0][rank::2])
            assert torch.equal(labels, whole[1][rank::2])


def test_views_are_keyed_by_epoch_and_id():
    source, pair = Labelled(images(), 7, WeakStrong(), 3), WeakStrong()
    for step in range(3):
        views, labels = source.at(step, 0, 1, CPU)
        epochs, rows = order(5, 7, 3, step)
        for view, label, epoch, row in zip(views, labels, epochs, rows, strict=True):
            alone = torch.from_numpy(source.images.images[row])[None]
            assert torch.equal(view, pair.weak(alone, np.array([10 * row]), 3, int(epoch))[0])
            assert label == source.images.labels[row]


def test_a_recipe_says_how_many_unlabelled_images_go_with_a_batch():
    recipe = SemiRecipe(steps=3, batch_size=8, unlabelled_ratio=3)
    assert recipe.unlabelled_batch_size == 24
    recipe.check_data_parallel(4)
    with pytest.raises(ValueError, match="batch_size: 8 does not divide by 3 workers; it is the"):
        recipe.check_data_parallel(3)


def test_a_recipe_knows_how_much_of_its_start_the_average_keeps():
    recipe, weight = SemiRecipe(steps=5, ema_decay=0.5), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(weight.weight)
    averaged = AveragedModel(weight, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    averaged.update_parameters(weight)  # as a training does, before its first step
    torch.nn.init.zeros_(weight.weight)
    for _ in range(recipe.steps):
        averaged.update_parameters(weight)
    assert averaged.module.weight.item() == recipe.share_of_start == 0.5**5


def test_a_recipe_is_refused_with_every_problem():
    with pytest.raises(
        ValueError,
        match="steps: 0, must be at least 1; batch_size: 0, must be at least 1; unlabelled_ratio: "
        r"0, must be at least 1; clip_norm: -2\.0, must be above 0, or null; ema_decay: 1\.0, must "
        r"be in \[0, 1\); save_every: -1, must be at least 0; log_every: 0, must be at least 1; "
        "warmup_steps: -1, must be at least 0 and below the 0 steps",
    ):
        SemiRecipe(
            steps=0,
            batch_size=0,
            unlabelled_ratio=0,
            save_every=-1,
            log_every=0,
            warmup_steps=-1,
            clip_norm=-2.0,
            ema_decay=1.0,
        )
