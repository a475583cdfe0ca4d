"""The recipe of a training: its length in epochs or steps, what it derives, and what it refuses."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raykb.engine.recipe import Lengths, Recipe


@pytest.mark.parametrize("given", [{}, {"epochs": 2, "steps": 3}])
def test_the_length_is_in_epochs_or_in_steps_and_in_one_of_them(given):
    with pytest.raises(ValueError, match=r"epochs: .*, and steps: .*; give one of the two, the"):
        Recipe(**given)


def test_all_is_counted_in_the_unit_of_the_length():
    every = {"warmup": 3, "save_every": 2, "log_every": 0.5, "evaluate_every": 1}
    epochs, steps = Recipe(epochs=4, **every), Recipe(steps=40, **every)
    assert (epochs.unit, steps.unit) == ("epochs", "steps")
    # 650 samples are 10 batches of 64
    assert epochs.lengths(650) == Lengths(40, 30, 20, 5, 10)
    assert steps.lengths(650) == steps.lengths(7) == Lengths(40, 3, 2, 1, 1)


def test_parts_of_an_epoch_are_the_nearest_step_and_at_least_one():
    recipe = Recipe(epochs=2, warmup=0.26, save_every=0.01, log_every=1.26, evaluate_every=0.04)
    assert recipe.lengths(640) == Lengths(20, 3, 1, 13, 1)


def test_null_is_what_is_usual_for_the_unit_and_zero_is_never():
    usual = Recipe(epochs=20), Recipe(steps=20)
    assert usual[0].lengths(640) == Lengths(200, 0, 50, 10, 0)
    assert usual[1].lengths(640) == Lengths(20, 0, 1000, 50, 0)
    assert Recipe(epochs=20, save_every=0).lengths(640).save_every == 0


@pytest.mark.parametrize(
    ("count", "keep_last", "steps"),
    [(640, False, 10), (650, False, 10), (650, True, 11), (3, False, 1), (3, True, 1)],
)
def test_the_last_smaller_batch_of_an_epoch_counts_if_it_is_kept(count, keep_last, steps):
    recipe = Recipe(epochs=2, keep_last=keep_last)
    assert recipe.steps_per_epoch(count) == steps
    assert recipe.lengths(count).steps == 2 * steps


def test_workers_share_a_batch_evenly_or_are_refused():
    recipe = Recipe(steps=3, batch_size=8)
    recipe.check_data_parallel(4)
    with pytest.raises(ValueError, match="batch_size: 8 does not divide by 3 workers; it is the"):
        recipe.check_data_parallel(3)


def test_fp16_is_refused_where_there_is_no_loss_scaling():
    with pytest.raises(ValueError, match="precision: 'fp16' needs loss scaling, which pipelines"):
        Recipe(steps=3, precision="fp16").check_data_parallel(1)


@pytest.mark.parametrize("length", [{"steps": 5}, {"epochs": 5}])
def test_a_recipe_knows_how_much_of_its_start_the_average_keeps(length):
    recipe, weight = Recipe(**length, ema_decay=0.5), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(weight.weight)
    averaged = AveragedModel(weight, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    averaged.update_parameters(weight)  # as a training does, before its first step
    torch.nn.init.zeros_(weight.weight)
    for _ in range(5):
        averaged.update_parameters(weight)
    assert averaged.module.weight.item() == recipe.share_of_start(1) == 0.5**5


def test_a_training_too_short_for_its_average_says_so():
    said = Recipe(steps=20, ema_decay=0.99).too_short(1)
    assert said.startswith("ema_decay: after 20 steps 82% of the average are still the initial")
    assert Recipe(steps=500, ema_decay=0.99).too_short(1) == ""
    assert Recipe(steps=20).too_short(1) == ""


def test_a_recipe_is_refused_with_every_problem():
    with pytest.raises(
        ValueError,
        match=r"steps: 0, must be at least 1, or null; batch_size: 0, must be at least 1; "
        r"clip_norm: -2\.0, must be above 0, or null; ema_decay: 1\.0, must be in \[0, 1\); "
        r"evaluate_every: -1, must be at least 0; save_every: -1, must be at least 0, or null; "
        r"log_every: 0, must be above 0, or null; warmup: -1, must be at least 0 and below the 0 "
        "steps",
    ):
        Recipe(
            steps=0,
            batch_size=0,
            evaluate_every=-1,
            save_every=-1,
            log_every=0,
            warmup=-1,
            clip_norm=-2.0,
            ema_decay=1.0,
        )


def test_a_warmup_as_long_as_the_training_is_refused():
    assert Recipe(epochs=3, warmup=2.9).lengths(640).warmup == 29
    with pytest.raises(ValueError, match="warmup: 3, must be at least 0 and below the 3 epochs"):
        Recipe(epochs=3, warmup=3)
