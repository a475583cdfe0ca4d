"""What images are normalised by where a configuration says nothing of it."""

import numpy as np
import pytest

from raykb.data.datasets import DATASETS, SOURCES
from raykb.data.normalisation import NORMALISATION, form, normalisation


def test_the_sample_has_the_mean_and_deviation_that_its_data_set_is_known_for():
    train, _ = DATASETS["fashion_mnist_sample"]()
    values, known = train.images / 255, NORMALISATION["fashion_mnist_sample"]
    assert known["mean"] == pytest.approx([np.mean(values)], abs=0.005)
    assert known["std"] == pytest.approx([np.std(values)], abs=0.005)


@pytest.mark.parametrize("name", NORMALISATION)
def test_figures_are_of_data_sets_that_there_are_one_a_channel(name):
    figures = normalisation({"data": {"name": name}})
    assert name in SOURCES
    assert len(figures["mean"]) == len(figures["std"]) in (1, 3)


@pytest.mark.parametrize("config", [{}, {"data": 7}, {"data": {"name": "parquet"}}, {"data": {}}])
def test_nothing_is_said_of_images_that_nobody_knows(config):
    assert normalisation(config) == {}
    assert form(config) == {}


def test_other_images_have_the_form_that_the_data_set_is_brought_to():
    data = {"name": "image_folder", "image_size": 64, "channels": 3, "root": "x"}
    assert form({"data": data}) == {"image_size": 64, "channels": 3}
    assert form({"data": {"name": "cifar10", "channels": 1}}) == {"channels": 1}
