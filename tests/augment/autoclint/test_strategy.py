"""When AutoCLINT predicts and stops: walks through games that no clock times."""

import itertools

import pytest

from raykb.augment.autoclint.settings import AutoClint
from raykb.augment.autoclint.strategy import Epoch, Strategy

USUAL = {"lr": 0.02, "epoch_s": 0.5, "test_s": 0.5, "left_s": 1000.0}


def walk(strategy, epochs, **settings):
    """Play epochs of half a second; return what was handed in: epoch and wait."""
    told, call, inner = [], 0.0, 0
    for number in range(1, epochs + 1):
        call, inner = call + 0.5, inner + 1
        wait, score = strategy.wait_s, number * 1e-4
        shown = USUAL | {"number": number, "inner": inner, "call_s": call, "score": score}
        if strategy.leaves(Epoch(**(shown | settings))):
            told.append((number, wait))
            strategy.predicted()
            call, inner = 0.0, 0
        if strategy.done:
            break
    return told


def test_the_first_prediction_comes_after_one_epoch_and_waits_grow_by_two_seconds_to_ninety():
    settings = AutoClint(patience_share=1e9)
    told = walk(Strategy(settings, 5000), 5000)
    assert told[0] == (1, 1.0)
    waits = [wait for _, wait in told[1:]]
    assert waits[:45] == [min(1.0 + 2 * n, 90.0) for n in range(45)]
    assert max(waits) == 90
    lengths = [(b - a) * 0.5 for (a, _), (b, _) in itertools.pairwise(told)]
    assert lengths == [wait + 0.5 for wait in waits]  # the first epoch that ends after W


def test_no_prediction_without_a_better_network():
    strategy = Strategy(AutoClint(), 5000)
    strategy.leaves(Epoch(number=1, inner=1, score=0.5, call_s=0.5, **USUAL))
    strategy.predicted()
    assert not strategy.leaves(Epoch(number=2, inner=1, score=0.5004, call_s=50.0, **USUAL))
    assert strategy.leaves(Epoch(number=3, inner=2, score=0.6, call_s=50.5, **USUAL))


def test_a_game_ends_while_there_is_time_for_a_last_prediction_and_its_reserve():
    strategy = Strategy(AutoClint(), 5000)
    enough = USUAL | {"number": 9, "inner": 1, "score": 0.5, "call_s": 0.5}
    assert not strategy.leaves(Epoch(**(enough | {"left_s": 180 + 1.5 * 1.5})))
    assert not strategy.done
    assert strategy.leaves(Epoch(**(enough | {"left_s": 180 + 1.5 * 1.5 - 0.01})))
    assert strategy.done


@pytest.mark.parametrize("video", [False, True])
def test_a_perfect_score_ends_a_game_of_images_at_once_and_of_videos_at_its_second_sign(video):
    strategy = Strategy(AutoClint(), 5000, video=video)
    shown = USUAL | {"inner": 1, "score": 0.998, "call_s": 0.5}
    assert strategy.leaves(Epoch(number=2, **shown))
    assert strategy.done is not video
    strategy.leaves(Epoch(number=3, **shown))
    assert strategy.done


def test_the_first_sign_asks_for_the_search_and_the_next_ends_the_game():
    strategy = Strategy(AutoClint(), 5000)
    tired = Epoch(number=5, inner=1, score=0.5, call_s=0.5, **(USUAL | {"lr": 1e-7}))
    assert strategy.leaves(tired)
    assert not strategy.done
    assert strategy.searches(tired)
    strategy.has_searched()
    assert not strategy.searches(tired)
    strategy.leaves(tired)
    assert not strategy.done  # the least rate is lower after the search
    strategy.leaves(Epoch(number=6, inner=1, score=0.5, call_s=0.5, **(USUAL | {"lr": 1e-9})))
    assert strategy.done


@pytest.mark.parametrize(
    ("settings", "shown"),
    [({"candidates": 0}, {}), ({}, {"left_s": 100.0}), ({}, {"score": 0.996}), ({}, {"score": 0})],
)
def test_there_is_no_search_without_candidates_time_or_anything_to_gain(settings, shown):
    strategy = Strategy(AutoClint(**settings), 5000, wanted=True)
    usual = USUAL | {"number": 5, "inner": 1, "score": 0.5, "call_s": 0.5}
    assert not strategy.searches(Epoch(**(usual | shown)))
    assert Strategy(AutoClint(), 5000, wanted=True).searches(Epoch(**usual))


def test_who_predicts_once_does_so_when_time_is_nearly_up():
    strategy = Strategy(AutoClint(anytime=False), 5000)
    assert walk(strategy, 10) == []
    assert walk(strategy, 1, left_s=100.0) == [(1, 1.0)]
    assert strategy.done


def test_validation_begins_with_a_good_training_score_or_after_a_few_predictions():
    strategy = Strategy(AutoClint(), 5000)
    assert not strategy.validates
    strategy.trained(0.91)
    assert strategy.validates
    strategy.trained(0.5)
    assert not strategy.validates
    strategy.predictions = 5
    assert strategy.validates
