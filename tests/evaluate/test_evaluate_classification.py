"""Accuracy and loss of a classifier over every example, and the confusion behind them."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.evaluate.classification import Classification

VIEW = ClassifierView(CropFlipView(mean=[0.5], std=[0.25]))
CPU = torch.device("cpu")


def images(count=30):
    numbers = np.random.default_rng(1)
    pixels = numbers.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)
    return ImageSet(pixels, np.arange(count) % 3, np.arange(count), ("a", "b", "c"))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()


def test_figures_are_those_of_every_image_and_details_have_the_confusion():
    test, classifier = images(), network()
    figures, details = Classification(test, VIEW, 3)(classifier, CPU)
    normalised = torch.from_numpy(test.images).float() / 255 / 0.25 - 2.0
    logits, labels = classifier(normalised), torch.from_numpy(test.labels)
    hits = logits.argmax(1) == labels
    assert figures["top1"] == hits.double().mean()
    assert 0.1 < figures["top1"] < 0.9
    wanted = nn.functional.cross_entropy(logits, labels).item()
    assert figures["loss"] == pytest.approx(wanted, rel=1e-5)
    for label in range(3):
        share = hits[labels == label].double().mean().item()
        assert figures[f"class_accuracy/{label}"] == pytest.approx(share)
    confusion = np.array(details["confusion"])
    assert confusion.sum(1).tolist() == [10, 10, 10]
    assert np.diag(confusion).sum() == hits.sum()
    assert confusion[0, 1] == ((labels == 0) & (logits.argmax(1) == 1)).sum()


@pytest.mark.parametrize("batch_size", [1, 7, 30, 31])
def test_batches_change_nothing(batch_size):
    whole = Classification(images(), VIEW, 3)(network(), CPU)
    parts = Classification(images(), VIEW, 3, batch_size=batch_size)(network(), CPU)
    assert parts.figures == pytest.approx(whole.figures)
    assert parts.details == whole.details


def test_a_class_without_test_images_has_no_accuracy():
    test = images()
    two = Classification(test.subset(np.flatnonzero(test.labels != 1)), VIEW, 3)
    figures, details = two(network(), CPU)
    assert "class_accuracy/1" not in figures
    assert "class_accuracy/2" in figures
    assert details["confusion"][1] == [0, 0, 0]


def test_figures_are_plain_numbers_and_the_network_stays_as_it_was():
    classifier = network()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    figures, _ = Classification(images(), VIEW, 3)(classifier, CPU)
    assert all(type(value) is float for value in figures.values())
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name]), name
    classifier(torch.zeros(2, 1, 4, 4)).sum().backward()  # nothing is left of inference mode


def test_half_precision_is_summed_in_float32():
    classifier = network()
    with torch.autocast("cpu", torch.bfloat16):
        figures, _ = Classification(images(), VIEW, 3)(classifier, CPU)
    exact, _ = Classification(images(), VIEW, 3)(classifier, CPU)
    assert figures["loss"] == pytest.approx(exact["loss"], rel=0.02)


def test_it_travels_to_workers():
    first = Classification(images(), VIEW, 3, batch_size=9)
    again = pickle.loads(pickle.dumps(first))
    assert again.batch_size == 9
    assert again(network(), CPU) == first(network(), CPU)
