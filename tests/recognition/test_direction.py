"""Which way CutMix moves a small network that learns labels some of which are wrong."""

import numpy as np
import pytest

from raykb.assembly import recognition_data, training
from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.engine.loop import Worker, fit
from raykb.engine.seeding import seed_everything
from raykb.recognition import METHODS

CONFIG = {
    "view": {"name": "crop_flip", "mean": [0.286], "std": [0.353], "padding": 0},
    "model": {"name": "small_convnet", "width": 8},
    "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 0.0005},
    "schedule": {"name": "cosine"},
    "method": {"name": "cross_entropy"},
    "recipe": {"epochs": 15, "batch_size": 50, "save_every": 0},
}


def noisy(images, share, seed):
    """Return images a share of whose labels are drawn again."""
    draw, labels = np.random.default_rng(seed), images.labels.copy()
    wrong = draw.random(len(labels)) < share
    labels[wrong] = draw.integers(0, len(images.classes), wrong.sum())
    return ImageSet(images.images, labels, images.ids, images.classes)


def loss(train, test, mixing, seed):
    """Return the validation loss after a training."""
    seed_everything(seed)
    made = training(
        Worker(),
        config=CONFIG | {"mixing": mixing},
        methods=METHODS,
        seed=seed,
        data=recognition_data,
        train=train,
        test=test,
    )
    fit(made, log=lambda step, figures: None)
    return made.evaluate("test").figures["test/loss"]


@pytest.mark.slow
def test_with_few_images_and_wrong_labels_the_validation_loss_falls_in_four_seeds_of_five():
    train, test = DATASETS["fashion_mnist_sample"](train_size=200, test_size=300, image_size=14)
    lower = 0
    for seed in range(5):
        wrong = noisy(train, 0.3, seed)
        cut = loss(wrong, test, {"name": "cutmix", "probability": 0.5}, seed)
        lower += cut < loss(wrong, test, {"name": "none"}, seed)
    assert lower >= 4
