"""From a resolved config to a training whose batches are mixed: resumed, shared, and evaluated."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist

from raykb.assembly import Recognition, recognition_data, training
from raykb.config import ConfigError, Problems
from raykb.data.images import ImageSet
from raykb.engine.checkpoint import decode, encode
from raykb.engine.loop import Worker, fit
from raykb.engine.seeding import seed_everything
from raykb.recognition import METHODS, MIXINGS

CLASSES = ("a", "b", "c")


def images(count, seed):
    """Return images whose brightness tells the class, under noise."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = 40 + 80 * labels[:, None, None, None] + numbers.integers(-40, 40, (count, 1, 12, 12))
    return ImageSet(pixels.astype(np.uint8), labels, np.arange(count), CLASSES)


TRAIN, TEST = images(24, 0), images(15, 1)
OTHER = {"linear": "spatial.", "spatial": "backbone.8."}  # layer, by the one that is put out


def made(
    mixing="cutmix", *, worker=None, seed=3, outside=None, settings=None, sections=None, **recipe
):
    options = {} if mixing == "none" else {"probability": 0.8}
    seed_everything(0)
    return training(
        worker or Worker(),
        config={
            "model": {"name": "small_convnet", "width": 4},
            "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 1.0e-3},
            "schedule": {"name": "cosine"},
            "mixing": {"name": mixing} | options | (settings or {}),
            "method": {"name": "cross_entropy"},
            "recipe": {"steps": 6, "batch_size": 8, "save_every": 0} | recipe,
            "view": {"name": "crop_flip", "mean": [0.5], "std": [0.25]},
        }
        | (sections or {}),
        methods=METHODS,
        seed=seed,
        data=recognition_data,
        train=TRAIN,
        test=TEST,
        outside=outside,
    )


def run(training, start=0, **options):
    rows = []
    fit(training, start=start, log=lambda step, figures: rows.append(figures), **options)
    return rows


def equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_resumed_training_ends_as_the_uninterrupted_one(mixing):
    whole, states = made(mixing, save_every=4), []
    run(whole, save=lambda state: states.append(encode(state)))
    torch.rand(3)  # the global generator has no part in it
    resumed = made(mixing)
    start = resumed.restore(decode(states[0]))
    assert start == 4
    run(resumed, start)
    equal(whole.parts["model"].state_dict(), resumed.parts["model"].state_dict())
    assert whole.evaluate("test") == resumed.evaluate("test")


def test_mixings_get_the_same_images_in_the_same_order():
    plain, cut = made("none").batches(0), made("cutout", settings={"size": 4}).batches(0)
    for before, after in zip(plain, cut, strict=True):
        hole = after.images != before.images
        assert hole.any()
        assert (after.images[hole] == 0).all()
        assert torch.equal(after.targets, before.targets)


def half(settings, sections=None):
    whole = made(worker=Worker(dist.get_rank(), 2), settings=settings, sections=sections)
    run(whole)
    return copy.deepcopy(dict(whole.parts["model"].named_parameters()))


@pytest.mark.parametrize("settings", [{}, {"per_sample": True}])
def test_two_workers_stay_alike(gloo, settings):
    network, twin = gloo.run(half, settings, size=2)
    for name, parameter in network.items():
        torch.testing.assert_close(parameter, twin[name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("output", ["linear", "spatial"])
def test_two_workers_train_the_output_layers_that_a_method_asks(gloo, method, output):
    network = {"name": "spatially_attentive", "backbone": "wide_resnet", "output": output}
    network |= {"options": {"depth": 10, "width": 1}}  # whose last maps have more than one place
    sections = {"model": network, "method": {"name": method}}
    begun = dict(made(sections=sections).parts["model"].named_parameters())
    found, twin = gloo.run(half, {}, sections, size=2)
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, twin[name])
        asked = method == "saol" or OTHER[output] not in name
        assert torch.equal(parameter, begun[name]) != asked, name


def test_images_of_other_kinds_are_a_figure_of_their_own():
    bright = ImageSet(255 - TEST.images, TEST.labels, TEST.ids, CLASSES)
    figures, details = made(outside=bright).evaluate("test")
    plain, same = made().evaluate("test")
    assert figures == plain | {"test/ood/auroc": figures["test/ood/auroc"]}
    assert details["confusion"] == same["confusion"]


def test_scenes_are_what_is_learnt_and_tested_and_their_boxes_are_those_of_the_test():
    sections = {"scenes": {"canvas": 2.0}, "weak_localisation": {"scenes": 15}}
    made_of = made("none", sections=sections)
    seen = next(iter(made_of.batches(0))).images
    assert seen.shape[2:] == (24, 24)
    figures = made_of.evaluate("test").figures
    assert figures["test/weak_localisation/cam/top1"] == pytest.approx(figures["test/top1"])


def test_boxes_of_images_that_are_no_scenes_are_refused():
    config = {"data": {"name": "fashion_mnist_sample"}, "weak_localisation": {}}
    with pytest.raises(ConfigError, match="weak_localisation: images have no known boxes"):
        Recognition.opened(config, Problems())


def test_all_data_that_cannot_be_opened_are_told_at_once():
    sample = {"name": "fashion_mnist_sample"}
    wrong = {"data": sample | {"classes": ["Cup"]}, "outside": sample | {"test_size": 0}}
    problems = Problems()
    with pytest.raises(ConfigError, match=r"(?s)data.*\['Cup'\].*outside.*test_size=0"):
        Recognition.opened(wrong, problems)
