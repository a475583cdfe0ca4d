"""From a resolved config to a training, by any method: what is averaged, kept and resumed."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from raykb.assembly import (
    Data,
    classifier_data,
    network_of,
    objective_of,
    rehearse,
    rehearse_all,
    semi_supervised_data,
    training,
)
from raykb.config import Problems
from raykb.data.feed import InPlace
from raykb.data.image_views import WeakStrongView
from raykb.data.images import ImageSet
from raykb.data.order import Endless
from raykb.data.source import Source
from raykb.data.strong import WeakStrong
from raykb.data.views import CropFlipView
from raykb.engine.checkpoint import decode, encode
from raykb.engine.loop import Worker, fit
from raykb.engine.objective import OBJECTIVES
from raykb.engine.seeding import seed_everything
from raykb.evaluate.classification import Classification
from raykb.models import MODELS
from raykb.semi import METHODS

CLASSES = ("a", "b", "c")
VIEW = {"mean": [0.5], "std": [0.25]}


def images(count, seed, first=0):
    """Return images whose brightness tells the class, under noise."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = 40 + 80 * labels[:, None, None, None] + numbers.integers(-40, 40, (count, 1, 12, 12))
    return ImageSet(pixels.astype(np.uint8), labels, first + np.arange(count), CLASSES)


LABELLED, TEST, POOL = images(6, 0), images(30, 1), images(24, 2, first=100)
TRUTHS = dict(zip(POOL.ids.tolist(), POOL.labels.tolist(), strict=True))


class Counted(InPlace):
    """A stream from memory; it counts what is asked of it."""

    def __init__(self, views=1):
        view = WeakStrongView(WeakStrong(strong_views=views), CropFlipView(**VIEW))
        super().__init__(Source(POOL, Endless(len(POOL), 12, 0), view, 0))
        self.asked, self.closed = 0, 0

    def batches(self, start, worker, stop=None):
        for fields in super().batches(start, worker, stop):
            self.asked += 1
            yield fields

    def figures(self):
        return {"stream/rows_per_s": 7.0}

    def close(self):
        self.closed += 1


def config(method="fixmatch", steps=8, **options):
    recipe = {"batch_size": 6, "ema_decay": 0.7, "save_every": 0} | options.pop("recipe", {})
    return {
        "model": options.pop("model", {"name": "small_convnet", "width": 4}),
        "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 1.0e-3},
        "schedule": {"name": "cosine_7_16"},
        "method": {"name": method} | options,
        "recipe": {"steps": steps} | recipe,
        "view": {"name": "crop_flip"} | VIEW,
        "pair": {"name": "fixmatch"},
    }


READ = {"labelled": LABELLED, "test": TEST, "ids": POOL.ids[::-1], "truths": TRUTHS}


def made(method="fixmatch", steps=8, *, worker=None, stream=..., seed=0, **options):
    seed_everything(seed)
    return training(
        worker or Worker(),
        config=config(method, steps, **options),
        methods=METHODS,
        seed=seed,
        data=semi_supervised_data,
        unlabelled=Counted(options.get("views", 1)) if stream is ... else stream,
        **READ,
    )


def run(training, start=0, **options):
    rows = []
    fit(training, start=start, log=lambda step, figures: rows.append(figures), **options)
    return rows


def equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ---------------------------------------------------------------------- trainings


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_as_the_uninterrupted_one(method):
    whole, states = made(method, recipe={"save_every": 3}), []
    run(whole, save=lambda state: states.append(encode(state)))
    resumed = made(method)
    start = resumed.restore(decode(states[0]))
    assert start == 3
    run(resumed, start)
    for name in ("model", "trained", "objective"):
        equal(whole.parts[name].state_dict(), resumed.parts[name].state_dict())
    assert whole.evaluate("test") == resumed.evaluate("test")


def test_weight_0_of_the_contrast_is_fixmatch_bit_for_bit():
    options = {"threshold": 0.4, "recipe": {"clip_norm": 0.05, "log_every": 1}}
    plain = made("fixmatch", **options)
    zero = made("contrastive_regularization", weight=0.0, **options)
    first, second = run(plain), run(zero)
    assert any(figures["train/mask_rate"] > 0 for figures in first)
    for mine, its in zip(first, second, strict=True):
        assert all(its[name] == mine[name] for name in mine if not name.startswith("time/"))
    equal(plain.parts["model"].state_dict(), zero.parts["model"].state_dict())


def test_evaluations_on_the_way_are_logged_and_change_no_bit_of_the_training():
    model = {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.3}
    trainings = [
        made("contrastive_regularization", 4, model=model, recipe={"evaluate_every": every})
        for every in (0, 2)
    ]
    rows = []
    for each in trainings:
        torch.manual_seed(4)  # of dropout
        rows.append(run(each))
    assert [sum("valid/top1" in row for row in found) for found in rows] == [0, 2]
    plain, watched = trainings
    for name in ("model", "trained", "objective"):
        equal(plain.parts[name].state_dict(), watched.parts[name].state_dict())


def test_without_decay_what_is_kept_is_the_trained_network():
    training = made(steps=2, recipe={"ema_decay": 0.0})
    assert "trained" not in training.parts
    before = copy.deepcopy(training.parts["model"].state_dict())
    run(training)
    after = training.parts["model"].state_dict()
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_what_is_kept_is_a_plain_classifier_whatever_the_method_put_on_it():
    plain, headed = made("fixmatch"), made("contrastive_regularization")
    for name in ("model", "trained"):
        assert plain.parts[name].state_dict().keys() == headed.parts[name].state_dict().keys()
    assert "head.0.weight" in headed.parts["objective"].state_dict()
    before = headed.parts["objective"].head[0].weight.clone()
    run(headed)
    assert not torch.equal(headed.parts["objective"].head[0].weight, before)


def test_what_a_method_puts_on_a_network_is_a_stream_of_the_seed_and_moves_no_other():
    whole = config("contrastive_regularization")
    data = semi_supervised_data(config=whole, seed=0, unlabelled=None, **READ)
    seed_everything(0)
    network = network_of(whole, data)
    wanted = torch.rand(3)
    seed_everything(0)
    network_of(whole, data)
    heads = [objective_of(whole, METHODS, network, data, seed).head[0].weight for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_supervised_learning_needs_no_unlabelled_image():
    (figures,) = run(made("supervised", stream=None))
    assert not any(name.startswith("train/stream/") for name in figures)


def test_a_method_whose_fields_the_data_do_not_give_is_refused_by_name():
    with pytest.raises(
        ValueError,
        match="FixMatch learns from images, labels, weak, strong, ids; the data give no weak, "
        "strong, ids, but images, labels",
    ):
        run(made("fixmatch", stream=None))


def test_figures_tell_of_stream_and_pseudo_labels_and_the_stream_is_closed():
    stream = Counted()
    (figures,) = run(made(stream=stream))
    assert stream.asked == 8
    assert stream.closed == 1
    assert figures["train/stream/rows_per_s"] == 7.0
    wanted = {"mask_rate", "correct_rate", "pseudo_label_precision", "cluster_size", "loss", "lr"}
    assert {f"train/{name}" for name in wanted} <= figures.keys()
    assert {f"train/class_share/{label}" for label in range(3)} <= figures.keys()


def test_a_second_strong_view_reaches_the_method():
    options = {"threshold": 0.0, "steps": 2, "recipe": {"log_every": 1}}
    one, two = (
        run(made("contrastive_regularization", views=views, **options))[0] for views in (1, 2)
    )
    assert one["train/loss_unlabelled"] == pytest.approx(two["train/loss_unlabelled"], rel=0.5)
    assert one["train/loss_contrast"] != two["train/loss_contrast"]


def test_warmup_and_precision_reach_the_training():
    recipe = {"warmup": 2, "log_every": 1}
    half, exact = (
        made(steps=4, recipe=recipe | {"precision": precision}) for precision in ("bf16", "fp32")
    )
    rates = [figures["train/lr"] for figures in run(half)]
    assert rates == pytest.approx([0.025, 0.05, 0.05 * 0.7730, 0.05 * 0.5141], rel=1e-3)
    run(exact)
    first, second = (each.parts["trained"].state_dict()["0.weight"] for each in (half, exact))
    assert not torch.equal(first, second)


def test_supervised_epochs_learn_from_the_rows_that_are_chosen():
    whole = config("cross_entropy", label_smoothing=0.1)
    whole |= {"recipe": {"epochs": 8, "batch_size": 6, "keep_last": True, "evaluate_every": 4}}
    seed_everything(0)
    made = training(
        Worker(),
        config=whole,
        methods=OBJECTIVES,
        seed=0,
        data=classifier_data,
        train=POOL,
        test=TEST,
        rows=np.arange(1, 15),
    )
    assert made.steps == 24  # 14 rows are two batches and a smaller one
    rows = run(made)
    assert sum("valid/top1" in row for row in rows) == 2
    assert made.evaluate("test").figures["test/top1"] > 0.5


def test_true_labels_must_be_those_of_all():
    with pytest.raises(ValueError, match="truths: none for 23 of 24 unlabelled images, as 101; "):
        semi_supervised_data(
            config=config(), seed=0, unlabelled=None, **READ | {"truths": {100: 1}}
        )


def test_ids_and_true_labels_are_told_in_ascending_order():
    data = semi_supervised_data(config=config(), seed=0, unlabelled=None, **READ)
    assert data.ids.tolist() == POOL.ids.tolist()
    assert data.truths.tolist() == POOL.labels.tolist()
    blind = semi_supervised_data(
        config=config(), seed=0, unlabelled=None, **READ | {"truths": None}
    )
    assert blind.truths is None


def half(method):
    rank = dist.get_rank()
    training = made(method, steps=3, worker=Worker(rank, 2))
    figures = run(training)[0]
    return (
        {name: value for name, value in figures.items() if not name.startswith("time/")},
        copy.deepcopy(dict(training.parts["trained"].named_parameters())),
        training.evaluate("test").figures,
    )


@pytest.mark.parametrize("method", ["contrastive_regularization", "flexmatch"])
def test_two_workers_stay_alike_and_the_first_evaluates(gloo, method):
    (figures, network, metrics), (same, twin, nothing) = gloo.run(half, method, size=2)
    assert figures == pytest.approx(same)
    for label, parameter in network.items():
        torch.testing.assert_close(parameter, twin[label])
    assert metrics.keys() >= {"test/top1", "test/loss"}
    assert nothing == {}


# ---------------------------------------------------------------------- rehearsals


def rehearsed(whole, *, comparison=None, methods=METHODS, data=None, **options):
    """Return what is wrong, and what the rehearsal returned."""
    problems = Problems()
    data = data or semi_supervised_data(
        config=config(), seed=0, unlabelled=None, **READ | {"truths": None}
    )
    perform = rehearse if comparison is None else rehearse_all
    whole = whole | {"comparison": comparison, "resources": {"training": {"workers": 1}}}
    found = perform(whole, methods, data, (1, 12, 12), problems, **options)
    return list(problems), found


@pytest.mark.parametrize("method", METHODS)
def test_a_rehearsal_of_what_is_right_returns_the_objective(method):
    before = torch.get_rng_state()
    problems, objective = rehearsed(config(method))
    assert problems == []
    assert type(objective) is METHODS[method]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_put_together_to_be_rehearsed_cannot_be_trained():
    given = Data(samples=6, classes=3, channels=1)
    rehearsed_only = training(
        Worker(), config=config("supervised"), methods=METHODS, seed=0, data=lambda **of: given
    )
    with pytest.raises(ValueError, match="feed: none, which can be rehearsed but not trained on"):
        run(rehearsed_only)


def test_a_rehearsal_tells_all_that_is_wrong_each_at_its_key():
    whole = config("fixmatch", threshold=1.5) | {
        "model": {"name": "wide_resnet", "depth": 11, "width": 1},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentun": 0.9},
        "recipe": {"steps": 8, "batch_size": 5},
        "view": {"name": "crop_flip", "mean": [0.5], "std": [0.0]},
    }
    problems, objective = rehearsed(whole, workers=2)
    assert objective is None
    keys = ["view", "model", "optimizer", "recipe", "method"]
    assert [problem.partition(".")[0].partition(":")[0] for problem in problems] == keys
    _, model, optimizer, recipe, method = problems
    assert model.startswith("model: depth=11, width=1: depth must be 6n + 4")
    assert optimizer == "optimizer.momentun: unknown (did you mean 'momentum'?)"
    assert recipe.startswith("recipe.batch_size: 5 does not divide by 2 workers")
    assert method == "method.threshold: 1.5, must be in 0..1"


def test_a_recipe_that_cannot_be_is_told_once_and_the_method_is_judged_without_it():
    whole = config(recipe={"steps": 4, "warmup": 4}, threshold=1.5)
    assert rehearsed(whole)[0] == [
        "recipe.warmup: 4, must be at least 0 and below the 4 steps",
        "method.threshold: 1.5, must be in 0..1",
    ]


def test_a_network_without_features_is_refused_before_the_start(monkeypatch):
    def flat(classes, channels):
        return nn.Sequential(nn.Flatten(), nn.Linear(144 * channels, classes))

    monkeypatch.setitem(MODELS, "flat", flat)
    whole = config("contrastive_regularization", model={"name": "flat"})
    problems, objective = rehearsed(whole)
    assert objective is None
    assert problems == [
        "method: network: Sequential has no classify, features, width, which "
        "contrastive_regularization needs; take one that has, or give it these methods "
        "(raykb/parts/backbone.py)"
    ]
    assert rehearsed(config("fixmatch", model={"name": "flat"}))[0] == []


def test_a_network_that_is_no_classifier_of_these_classes_is_refused(monkeypatch):
    def maps(classes, channels):
        return nn.Conv2d(channels, classes, 1)

    monkeypatch.setitem(MODELS, "maps", maps)
    problems, _ = rehearsed(config("fixmatch", model={"name": "maps"}))
    assert problems == ["model: gives (1, 3, 12, 12) for an image, must be (1, 3)"]


def test_a_method_can_be_judged_where_the_network_cannot_be_made():
    model = {"name": "wide_resnet", "depth": 11, "width": 1}
    whole = config("contrastive_regularization", threshold=2.0, model=model)
    problem, of_the_method = rehearsed(whole)[0]
    assert problem.startswith("model: depth=11")
    assert of_the_method == "method.threshold: 2.0, must be in 0..1"


def test_problems_of_rivals_are_told_where_they_are_written():
    rivals = {
        "strict": {"name": "fixmatch", "threshold": 1.5},
        "fine": {"name": "fixmatch"},
        "hot": {"name": "uda", "temperature": 0.0},
    }
    problems, made = rehearsed(config("softmatch", width=0.0), comparison={"rivals": rivals})
    assert problems == [
        "comparison.rivals.strict.threshold: 1.5, must be in 0..1",
        "comparison.rivals.hot.temperature: 0.0, must be in 1e-06..inf",
        "method.width: 0.0, must be in 1e-06..inf",
    ]
    assert list(made) == ["strict", "fine", "hot", "softmatch"]
    assert [objective is None for objective in made.values()] == [True, False, True, True]


def test_a_rivals_model_is_told_at_its_rival_and_a_common_problem_once():
    rivals = {"deep": {"name": "wide_resnet", "depth": 11, "width": 1}}
    whole = config("fixmatch", threshold=1.5)
    problems, _ = rehearsed(whole, comparison={"over": "model", "rivals": rivals})
    assert len(problems) == 2
    assert problems[0].startswith("comparison.rivals.deep: depth=11, width=1: depth must be")
    assert problems[1] == "method.threshold: 1.5, must be in 0..1"


def test_a_rival_called_as_the_runs_own_is_told_at_the_comparison():
    comparison = {"rivals": {"fixmatch": {"name": "uda"}}}
    problems, made = rehearsed(config("fixmatch"), comparison=comparison)
    assert problems == [
        "comparison.rivals: 'fixmatch' is what the section 'method' is called; call the rival "
        "otherwise, or leave it out"
    ]
    assert made == {}


def test_data_say_what_a_builder_has_to_know():
    whole = config("cross_entropy")
    data = classifier_data(config=whole, seed=0, train=POOL, test=TEST)
    assert isinstance(data, Data)
    assert (data.samples, data.classes, data.channels, data.ids) == (24, 3, 1, None)
    assert isinstance(data.evaluations[""], Classification)
