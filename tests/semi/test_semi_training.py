"""A whole training by any method: what is averaged, kept, evaluated, and resumed."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist

from raykb.data.images import ImageSet
from raykb.data.strong import WeakStrong
from raykb.data.unlabelled import CPU, Views
from raykb.data.views import CropFlipView
from raykb.engine.checkpoint import decode, encode
from raykb.engine.loop import Worker, fit
from raykb.engine.seeding import generator, seed_everything
from raykb.semi import METHODS
from raykb.semi.recipe import SemiRecipe
from raykb.semi.training import evaluate, semi_training

CLASSES = ("a", "b", "c")
VIEW = CropFlipView(mean=[0.5], std=[0.25])


def images(count, seed, first=0):
    """Return images whose brightness tells the class, under noise."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = 40 + 80 * labels[:, None, None, None] + numbers.integers(-40, 40, (count, 1, 12, 12))
    return ImageSet(pixels.astype(np.uint8), labels, first + np.arange(count), CLASSES)


LABELLED, TEST, POOL = images(6, 0), images(30, 1), images(24, 2, first=100)


class Stream:
    """A stream from memory; it counts what is asked of it."""

    def __init__(self, batch_size=12, seed=0):
        self._size, self._seed, self.asked, self.closed = batch_size, seed, 0, 0

    count, shape, steps_per_epoch = len(POOL), (1, 12, 12), 2

    def ids(self):
        return POOL.ids[::-1]

    def batches(self, start, rank=0, size=1, device=CPU, stop=None):
        pair = WeakStrong()
        for step in itertools.count(start):
            self.asked += 1
            epoch, first = divmod(step * self._size, self.count)
            order = torch.randperm(self.count, generator=generator(self._seed, epoch))
            rows = order[first : first + self._size].chunk(size)[rank].numpy()
            pixels, ids = torch.from_numpy(POOL.images[rows]), POOL.ids[rows]
            yield Views(*pair(pixels, ids, self._seed, epoch), torch.from_numpy(ids))

    def figures(self):
        return {"stream/images_per_s": 7.0}

    def close(self):
        self.closed += 1


def training(method="fixmatch", steps=8, worker=None, stream=None, keep=None, **options):
    recipe = {"batch_size": 6, "unlabelled_ratio": 2, "ema_decay": 0.7}
    own = options.pop("recipe", {})
    seed_everything(0)
    return semi_training(
        worker or Worker(),
        labelled=LABELLED,
        unlabelled=stream or Stream(),
        test=TEST,
        model={"name": "small_convnet", "width": 4},
        optimizer={"name": "sgd", "lr": 0.05, "weight_decay": 1.0e-3},
        schedule={"name": "cosine_7_16"},
        method={"name": method} | options,
        recipe=SemiRecipe(steps=steps, **recipe | own),
        view=VIEW,
        views=WeakStrong(),
        seed=0,
        truths=dict(zip(POOL.ids.tolist(), POOL.labels.tolist(), strict=True)),
        keep=keep,
    )


def run(made, start=0, **options):
    logged = []
    fit(made, start=start, log=lambda step, figures: logged.append(figures), **options)
    return logged


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_as_the_uninterrupted_one(method):
    whole, states = training(method), []
    run(whole, save=lambda state: states.append(encode(state)), save_every=3)
    resumed = training(method)
    start = resumed.restore(decode(states[0]))
    assert start == 3
    run(resumed, start)
    ends = [made.state(8)["parts"] for made in (whole, resumed)]
    for name in ("model", "student", "objective"):
        for label, value in ends[0][name].items():
            assert torch.equal(value, ends[1][name][label]), (name, label)
    assert whole.evaluate() == resumed.evaluate()


def test_weight_0_of_the_contrast_is_fixmatch_bit_for_bit():
    options = {"threshold": 0.4, "recipe": {"clip_norm": 0.05}}
    plain = training("fixmatch", **options)
    zero = training("contrastive_regularization", weight=0.0, **options)
    first, second = run(plain, log_every=1), run(zero, log_every=1)
    assert any(figures["train/mask_rate"] > 0 for figures in first)
    for mine, its in zip(first, second, strict=True):
        assert all(its[name] == mine[name] for name in mine if not name.startswith("time/"))
    for label, value in plain.parts["model"].state_dict().items():
        assert torch.equal(zero.parts["model"].state_dict()[label], value)


def test_the_average_begins_at_the_initial_weights_and_keeps_the_statistics():
    made = training(steps=5)
    average = {label: p.clone() for label, p in made.parts["student"].named_parameters()}
    update = made.update

    def averaged(step):
        figures = update(step)
        for label, parameter in made.parts["student"].named_parameters():
            average[label] = 0.7 * average[label] + 0.3 * parameter.detach()
        return figures

    made.update = averaged
    run(made)
    model, student = made.parts["model"], made.parts["student"]
    for label, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, average[label])
        assert not torch.equal(parameter, student.get_parameter(label))
        assert parameter.grad is None
        assert not parameter.requires_grad
    for label, buffer in model.named_buffers():
        assert torch.equal(buffer, student.get_buffer(label))


def test_without_decay_the_average_is_the_last_weights():
    made = training(steps=2, recipe={"ema_decay": 0.0})
    run(made)
    for label, value in made.parts["student"].state_dict().items():
        assert torch.equal(made.parts["model"].state_dict()[label], value)


def test_what_is_kept_is_a_plain_classifier_whatever_the_method_put_on_it():
    plain, headed = training("fixmatch"), training("contrastive_regularization")
    assert plain.parts["model"].state_dict().keys() == headed.parts["model"].state_dict().keys()
    assert {"head.0.weight", "classifier.0.weight"} <= headed.parts["student"].state_dict().keys()


def test_supervised_learning_asks_for_no_unlabelled_image():
    stream = Stream()
    figures = run(training("supervised", stream=stream))
    assert stream.asked == 0
    assert "train/stream/images_per_s" not in figures[0]


def test_figures_tell_of_stream_and_pseudo_labels_and_the_stream_is_closed():
    stream = Stream()
    (figures,) = run(training(stream=stream))
    assert stream.asked == 8
    assert stream.closed == 1
    assert figures["train/stream/images_per_s"] == 7.0
    wanted = {"mask_rate", "correct_rate", "pseudo_label_precision", "cluster_size", "loss", "lr"}
    assert {f"train/{name}" for name in wanted} <= figures.keys()
    assert {f"train/class_share/{label}" for label in range(3)} <= figures.keys()


def test_warmup_and_precision_reach_the_training():
    made = training(steps=4, recipe={"warmup_steps": 2, "precision": "bf16"})
    rates = [figures["train/lr"] for figures in run(made, log_every=1)]
    assert rates == pytest.approx([0.025, 0.05, 0.05 * 0.7730, 0.05 * 0.5141], rel=1e-3)
    exact = training(steps=4, recipe={"warmup_steps": 2})
    run(exact)
    first, second = (t.parts["student"].state_dict()["0.weight"] for t in (made, exact))
    assert not torch.equal(first, second)


def test_evaluation_is_that_of_every_image_and_keeps_the_confusion():
    kept = []
    made = training("supervised", steps=30, keep=kept.append)
    run(made)
    figures = made.evaluate()
    (confusion,) = kept
    assert confusion.sum() == len(TEST)
    assert confusion.sum(1).tolist() == [10, 10, 10]
    assert figures["test/top1"] == confusion.diagonal().sum() / 30
    assert figures["test/top1"] > 0.5
    shares = [figures[f"test/class_accuracy/{label}"] for label in range(3)]
    assert shares == pytest.approx((confusion.diagonal() / 10).tolist())
    piecemeal = evaluate(made.parts["model"], TEST, VIEW, CPU, batch_size=7)
    assert piecemeal == pytest.approx(figures)


def test_a_class_without_test_images_has_no_accuracy():
    model = training().parts["model"]
    two = TEST.subset(np.flatnonzero(TEST.labels != 1))
    figures = evaluate(model, two, VIEW, CPU)
    assert "test/class_accuracy/1" not in figures
    assert "test/class_accuracy/2" in figures


def test_true_labels_must_be_those_of_all():
    with pytest.raises(ValueError, match="truths: none for 23 of 24 unlabelled images, as 101; "):
        semi_training(
            Worker(),
            labelled=LABELLED,
            unlabelled=Stream(),
            test=TEST,
            model={"name": "small_convnet", "width": 4},
            optimizer={"name": "sgd", "lr": 0.05},
            schedule={"name": "constant"},
            method={"name": "fixmatch"},
            recipe=SemiRecipe(steps=1, batch_size=6),
            view=VIEW,
            views=WeakStrong(),
            seed=0,
            truths={100: 1},
        )


def half(method):
    rank = dist.get_rank()
    made = training(method, steps=3, worker=Worker(rank, 2))
    figures = run(made)[0]
    return (
        {name: value for name, value in figures.items() if not name.startswith("time/")},
        copy.deepcopy(dict(made.parts["student"].named_parameters())),
        made.evaluate(),
    )


@pytest.mark.parametrize("method", ["contrastive_regularization", "flexmatch"])
def test_two_workers_stay_alike_and_the_first_evaluates(gloo, method):
    (figures, student, metrics), (same, twin, nothing) = gloo.run(half, method, size=2)
    assert figures == pytest.approx(same)
    for label, parameter in student.items():
        torch.testing.assert_close(parameter, twin[label])
    assert metrics.keys() >= {"test/top1", "test/loss"}
    assert nothing == {}
