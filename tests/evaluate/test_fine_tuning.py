import numpy as np
import pytest
import torch
from judged import bright_images, judged_by_images
from torch import nn

from raykb.data.images import ImageSet
from raykb.evaluate.fine_tuning import FineTuned, FineTuning, dealt
from raykb.models import MODELS
from raykb.parts.backbone import freeze_classifier


def network():
    """Return a backbone whose batch norm knows such images, and whose classifier is frozen."""
    torch.manual_seed(0)
    found = MODELS["small_convnet"](3, 1, width=4)
    with torch.no_grad():
        for _ in range(30):
            found(torch.from_numpy(bright_images(60, 2).images) / 255)
    freeze_classifier(found)
    return found.eval()


def judged(train=None, test=None, model=None, seed=0):
    train, test = train or bright_images(60, 0), test or bright_images(30, 1)
    return judged_by_images(model or network(), train, test, seed)


def tuned(judged, **settings):
    return FineTuning(**{"steps": 10, "batch_size": 6, "warmup": 2} | settings)(judged)


# ---------------------------------------------------------------------- labels


@pytest.mark.parametrize("sizes", [(20, 20, 20), (3, 30, 11), (1, 1, 40)])
def test_however_many_are_labelled_the_classes_have_the_same_number_within_one(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 4, 2], sizes))
    order = dealt(np.arange(100, 100 + len(labels)), labels, 0)
    assert sorted(order) == list(range(len(labels)))
    for count in range(len(labels) + 1):
        taken = {label: int((labels[order[:count]] == label).sum()) for label in (0, 2, 4)}
        unfinished = [n for label, n in taken.items() if n < (labels == label).sum()]
        assert max(taken.values()) - min([*unfinished, max(taken.values())]) <= 1


def test_which_are_labelled_depends_on_seed_and_ids_alone():
    ids, labels = np.arange(40) * 7, np.arange(40) % 3
    first = ids[dealt(ids, labels, 5)]
    mixed = np.random.default_rng(1).permutation(40)
    assert (ids[mixed][dealt(ids[mixed], labels[mixed], 5)] == first).all()
    assert (ids[dealt(ids, labels, 6)] != first).any()


def test_shares_name_figures_and_say_how_many_labels_these_are():
    found = tuned(judged(), shares=[0.01, 0.125, 1.0])
    names = ["top1_1", "top1_12.5", "top1_100"]
    assert list(found.figures) == names
    assert FineTuning(shares=[0.01, 0.125, 1.0]).compared == names
    assert found.details == {"images": {"top1_1": 3, "top1_12.5": 8, "top1_100": 60}}


def test_a_training_sees_the_images_of_its_share_all_of_them_and_no_others():
    pixels = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    train = ImageSet(pixels, np.arange(60) % 3, np.arange(60), ("a", "b", "c"))
    rows = dealt(train.ids, train.labels, 0)[:7]
    training = FineTuning(steps=5, batch_size=6, warmup=1).training(judged(train), rows)
    batches = list(training.batches(0))
    assert [len(batch.labels) for batch in batches] == [6] * 5
    seen = torch.cat([batch.images[:, 0, 0, 0] for batch in batches]).mul(255).round().long()
    assert {*seen.tolist()} == {*rows.tolist()}
    assert torch.equal(torch.cat([batch.labels for batch in batches]), seen % 3)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("averaged", [False, True])
def test_all_that_features_depend_on_is_trained_under_a_classifier_of_its_own(averaged):
    model = network().requires_grad_(not averaged)
    rows, tuning = np.arange(6), FineTuning(steps=2, batch_size=6, warmup=0)
    training = tuning.training(judged(model=model), rows)
    copy = training.parts["model"]
    before = {name: value.clone() for name, value in copy.named_parameters()}
    assert torch.equal(before["backbone.0.weight"], model[0].weight)
    training.step(next(iter(training.batches(0))), 0)
    training.update(0)
    last = len(model) - 1
    for name, value in copy.named_parameters():
        own = name in (f"backbone.{last}.weight", f"backbone.{last}.bias")
        assert torch.equal(value, before[name]) == own, name
    assert copy.training


def test_a_classifier_stands_on_features_of_any_width():
    model = MODELS["vit"](3, 1, image_size=8, width=12, depth=2, heads=2, position="sine_cosine")
    found = FineTuned(model, 5)
    assert found(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert not any(own.requires_grad for own in found.backbone.heads.parameters())
    with pytest.raises(ValueError, match=r"Linear has no .* which fine-tuning needs"):
        FineTuned(nn.Linear(2, 2), 5)


def test_settings_reach_the_optimizer_layer_by_layer():
    settings = {"lr": 0.25, "weight_decay": 0.5, "layer_decay": 0.5, "warmup": 4, "steps": 8}
    training = FineTuning(**settings, batch_size=6).training(judged(), np.arange(6))
    groups = training.parts["optimizer"].param_groups
    rates = [group["initial_lr"] for group in groups[::2]]
    assert rates == [0.25 * 0.5**n for n in (4, 3, 2, 1, 0)]  # four convolutions, the classifier
    assert {group["weight_decay"] for group in groups[::2]} == {0.5}
    assert [group["lr"] for group in groups[-2:]] == [0.25 / 4] * 2
    assert training.steps == 8


def test_more_steps_learn_more_and_labels_that_say_nothing_teach_nothing():
    test, wrong = bright_images(30, 1), bright_images(60, 0)
    wrong.labels[:] = np.random.default_rng(0).permutation(wrong.labels)
    short, long = (tuned(judged(), shares=[1.0], steps=n) for n in (3, 40))
    assert long.figures["top1_100"] > max(0.9, short.figures["top1_100"])
    assert tuned(judged(wrong, test), shares=[1.0]).figures["top1_100"] < 0.7


def test_the_seed_draws_and_nothing_else_does():
    asked = [judged(seed=seed) for seed in (0, 0, 1, 2)]
    state = torch.get_rng_state()
    several = [tuned(each, steps=3).figures for each in asked]
    assert torch.equal(torch.get_rng_state(), state)
    assert several[0] == several[1]
    assert several[0] not in several[2:]


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shares": []}, r"shares: \[\], must be shares above 0 and at most 1, at least one"),
        ({"shares": [0.1, 0.1]}, "each once"),
        ({"shares": [0.0, 1.0]}, "shares: .*above 0"),
        ({"steps": 0}, "steps: 0, must be at least 1"),
        ({"batch_size": 0, "lr": 0.0}, "batch_size: 0, must be .*; lr: 0.0, must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay: -1.0, must be at least 0"),
        ({"layer_decay": 1.5}, "layer_decay: 1.5, must be above 0 and at most 1"),
        ({"steps": 5, "warmup": 5}, "warmup: 5, must be at least 0 and below the 5 steps"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        FineTuning(**settings)
