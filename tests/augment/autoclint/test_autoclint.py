"""AutoCLINT on small data, by a clock that goes on when the network is used."""

import numpy as np
import pytest
import torch
from torch import nn

from raykb.augment.autoclint import search
from raykb.augment.autoclint.loss import balance, classification_loss
from raykb.augment.autoclint.player import Player, Rate
from raykb.augment.autoclint.reading import Reading, held_out, input_size
from raykb.augment.autoclint.settings import AutoClint
from raykb.augment.policy import Policy
from raykb.evaluate.ingestion import GameData, Part, PassClock, ingestion
from raykb.models.anytime import AnytimeNetwork
from raykb.models.small_convnet import small_convnet


def part(count, seed, *, classes=3, channels=1, frames=1, several=False):
    """Examples whose class is how bright their upper half is; noise beside it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    examples = rng.integers(0, 60, (count, frames, channels, 16, 16), dtype=np.uint8)
    examples[..., :8, :] += (labels * 60).astype(np.uint8).reshape(-1, 1, 1, 1, 1)
    truth = np.eye(classes, dtype=np.float32)[labels]
    if several:
        truth[:, 0] = rng.integers(2, size=count)
    return Part(examples, truth)


def network_for(data):
    frames, _, _, channels = data.metadata.shape
    shape = {"classes": data.metadata.classes, "channels": channels, "video": frames > 1}
    return AnytimeNetwork(small_convnet(2, 3, width=2), **shape)


def game(budget_s=3.0, seed=0, data=None, **settings):
    clock, data = PassClock(0.01), data or GameData(part(120, 0), part(30, 1))
    torch.manual_seed(seed)
    network = network_for(data)
    clock.watch(network)
    usual = {"reserve_s": 0.1, "batch_size": 16, "candidates": 3, "search_left_s": 0.5}
    usual |= {"wait_s": 0.1, "wait_more_s": 0.1, "perfect": 1.1, "lr": 0.1}
    player = Player(AutoClint(**(usual | settings)), network, seed=seed, clock=clock)
    return player, clock, ingestion(player, data, budget_s, scale_s=1.0, clock=clock)


@pytest.mark.parametrize(
    ("height", "width", "frames", "size"),
    [
        (28, 28, 1, (1, 28, 28)),
        (32, 32, 1, (1, 32, 32)),
        (203, 74, 1, (1, 128, 48)),
        (74, 203, 1, (1, 48, 128)),
        (576, 944, 1, (1, 48, 64)),
        (300, 400, 1, (1, 48, 64)),
        (60, 80, 46, (8, 48, 64)),
        (28, 28, 5, (5, 28, 28)),
    ],
)
def test_the_size_rule(height, width, frames, size):
    assert input_size(height, width, frames) == size


def test_a_positive_of_a_quarter_weighs_four_and_none_weighs_more_than_ten():
    labels = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert balance(labels).tolist() == [pytest.approx([4.0, 4 / 3, 4 / 3, 4 / 3])]
    rare = torch.zeros(10, 10)
    rare[0, 0] = 1
    assert balance(rare).max() == 10
    zero = classification_loss(torch.zeros(1, 4), labels, multi_label=True)
    assert zero.item() == pytest.approx(np.log(2) * (4 + 3 * 4 / 3) / 4)


def test_the_rate_climbs_to_twice_its_start_and_halves_when_the_loss_stays():
    rate = Rate(0.02, 5, 10)
    assert [rate.at(epoch) for epoch in (0, 5, 50)] == [0.01, 0.02, 0.02]
    for _ in range(12):
        rate.note(1.0)
    assert rate.at(50) == 0.01


def test_the_first_prediction_comes_after_exactly_thirty_steps():
    clock, data, seen = PassClock(0.01), GameData(part(60, 0), part(9, 1)), []
    settings = AutoClint(reserve_s=0, valid_from=1.1)  # a validation would be a pass, too

    class Told(Player):
        def test(self, dataset, remaining_time_budget):
            seen.append(clock.seconds)
            return super().test(dataset, remaining_time_budget)

    network = network_for(data)
    clock.watch(network)
    ingestion(Told(settings, network, seed=0, clock=clock), data, 0.9, clock=clock)
    assert seen[0] == pytest.approx(30 * 0.01)


def test_the_optimizer_whose_first_one_imports_for_seconds_is_there_before_the_clock_starts(
    monkeypatch,
):
    data = GameData(part(60, 0), part(9, 1))
    player = Player(AutoClint(steps=2), network_for(data), seed=0)
    monkeypatch.setattr(torch.optim, "SGD", None)
    player.train(data.train, 1000.0)
    assert len(player.losses) == 1


def test_a_game_with_a_held_clock_is_the_same_again_and_learns():
    (first, _, one), (_, _, two) = game(), game()
    assert one == two
    assert one.ledger[-1].nauc > 0.8 > one.ledger[0].nauc
    assert first.done_training
    assert one.late == 0


def test_predicting_on_the_way_is_worth_more_than_once_at_the_end():
    few = {"budget_s": 1.5, "steps": 10}
    gains = [
        game(seed=s, **few)[2].alc - game(seed=s, anytime=False, **few)[2].alc for s in range(3)
    ]
    assert min(gains) > 0, gains


def test_the_best_network_is_kept_as_it_was():
    player, _, _ = game()
    before = [p.clone() for p in player.best.parameters()]
    player._epoch()
    assert all(torch.equal(a, b) for a, b in zip(before, player.best.parameters(), strict=True))


@pytest.mark.parametrize(
    "kind",
    [
        {"channels": 3},
        {"channels": 5},
        {"frames": 4},
        {"several": True},
    ],
    ids=lambda kind: next(iter(kind)),
)
def test_any_number_of_channels_videos_and_several_labels_are_played(kind):
    data = GameData(part(80, 0, **kind), part(20, 1, **kind))
    player, _, played = game(1.5, data=data)
    assert played.ledger[-1].nauc > 0
    assert player.reading.multi_label == ("several" in kind)
    assert player.reading.video == ("frames" in kind)


def test_floats_of_any_range_are_read_as_bytes_from_the_least_to_the_greatest():
    examples = np.linspace(-3, 5, 2 * 64).reshape(2, 1, 1, 8, 8).astype(np.float32)
    reading = Reading.of(examples, np.eye(2), AutoClint())
    taken = reading.taken(examples)
    assert (taken.min(), taken.max()) == (0, 255)
    unit = Reading.of(np.full((2, 1, 1, 8, 8), 0.6, np.float32), np.eye(2), AutoClint())
    assert (unit.low, unit.high) == (0, 1)


def test_large_examples_are_resized_and_long_videos_thinned():
    examples = np.zeros((2, 20, 3, 60, 80), np.uint8)
    reading = Reading.of(examples, np.eye(2), AutoClint())
    assert reading.taken(examples).shape == (2, 8, 3, 48, 64)


def test_what_is_held_out_is_a_tenth_to_a_limit_and_is_not_trained_on():
    rows, held = held_out(np.zeros((100, 2)), AutoClint(), 0)
    assert (len(rows), len(held)) == (90, 10)
    assert not set(rows) & set(held)
    assert len(held_out(np.zeros((5000, 2)), AutoClint(), 0)[1]) == 256


def test_the_published_pool_has_the_three_tables_of_the_paper():
    assert len(search.published_pool()) == 75


def candidates(*rewards):
    policy = Policy([[("Invert", 0.1, 0.5)], [("Invert", 0.9, 0.5)], [("Rotate", 0.9, 0.5)]])
    return [search.Candidate(n, policy, reward) for n, reward in enumerate(rewards)]


def test_no_candidate_at_or_below_the_current_score_is_kept():
    assert search.kept_policy(candidates(0.4, 0.5), 0.5, 5) is None
    kept = search.kept_policy(candidates(0.4, 0.6, 0.9), 0.5, 5)
    assert [name for ((name, _, _),) in kept.sub_policies] == ["Invert", "Rotate"]


def test_the_best_block_counts_and_blocks_of_one_class_do_not():
    truth = np.eye(2)[[0, 1, 0, 1, 0, 0]]
    right = np.concatenate([1 - truth[:2], truth[2:4], truth[4:]])
    assert search.block_score(right, truth, 2) == 1
    assert search.block_score(right[:2], truth[:2], 2) == -1
    assert search.block_score(truth[4:], truth[4:], 2) == -1


@pytest.mark.parametrize("found", [None, Policy([[("Rotate", 0.9, 0.5)]])])
def test_a_search_changes_the_images_only_if_it_found_something_and_halves_the_rate(
    monkeypatch, found
):
    given = []

    def searched(network, images, truth, **settings):
        given.append((images.shape, settings["score"]))
        return found

    monkeypatch.setattr("raykb.augment.autoclint.player.light_search", searched)
    player, _, _ = game(valid_from=-1.0, patience_share=0.01, lr=0.02, steps=2)
    assert len(given) == 1
    assert given[0][0] == (12, 1, 16, 16)
    assert player.policy == found
    assert player.rate.peak == pytest.approx(0.02 / 2 / 2)


def test_a_search_with_the_evaluator_of_the_room_returns_what_is_above_the_score():
    network = AnytimeNetwork(small_convnet(2, 3, width=2), classes=3, channels=1)
    shown = part(32, 0)
    given = {"multi_label": False, "settings": AutoClint(candidates=4, copies=2), "seed": 0}
    images, device = shown.examples[:, 0], torch.device("cpu")
    run = {"score": -1.0, "device": device, "left": lambda: 1.0} | given
    found = search.light_search(network, images, shown.labels, **run)
    assert 1 <= len(found) <= 12
    assert found == search.light_search(network, images, shown.labels, **run)
    assert search.light_search(network, images, shown.labels, **(run | {"score": 1.0})) is None


@pytest.mark.parametrize(("seconds", "scored"), [(0.5, 4), (0.035, 3), (0.01, 1)])
def test_a_search_begins_no_candidate_that_would_not_end_in_time(seconds, scored):
    clock = PassClock(0.01)
    network = AnytimeNetwork(small_convnet(2, 3, width=2), classes=3, channels=1)
    clock.watch(network)
    shown = part(32, 0)
    search.light_search(
        network,
        shown.examples[:, 0],
        shown.labels,
        score=-1.0,
        multi_label=False,
        settings=AutoClint(candidates=4, copies=1),
        seed=0,
        device=torch.device("cpu"),
        left=lambda: seconds - clock(),
    )
    assert clock() == pytest.approx(scored * 0.01)


def test_settings_out_of_range_are_all_named():
    with pytest.raises(ValueError, match=r"steps.*wait_s"):
        AutoClint(steps=0, wait_s=-1)


def test_a_network_without_features_is_refused():
    with pytest.raises(ValueError, match="any-time game"):
        AnytimeNetwork(nn.Linear(2, 2), classes=2, channels=1)
