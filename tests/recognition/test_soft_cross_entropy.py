"""Cross entropy of soft targets: that of two labels, and that of one where nothing is mixed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raykb.engine.objective import CrossEntropy, LabelledBatch, Task
from raykb.engine.seeding import generator
from raykb.recognition import MIXINGS
from raykb.recognition.batch import SoftBatch
from raykb.recognition.cross_entropy import SoftCrossEntropy

CLASSES = 5


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, CLASSES))


def loss(network, images, targets, label_smoothing=0.0):
    objective = SoftCrossEntropy(Task(network, 1, CLASSES), label_smoothing=label_smoothing)
    return objective(network, SoftBatch(images, targets), 0)["loss"]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_it_is_the_cross_entropy_of_two_labels_in_their_shares(name, per_sample, label_smoothing):
    network, labels = linear(), torch.arange(8) % CLASSES
    mixing = MIXINGS[name](probability=1.0, per_sample=per_sample)
    for seed in range(5):
        images = torch.randn(8, 3, 6, 6, generator=generator(seed))
        drawn = mixing.draw(images, generator(seed))
        mixed, targets = drawn.applied(images, labels), drawn.targets(labels, CLASSES)
        logits = network(mixed.images)
        own, other = (
            F.cross_entropy(logits, each, reduction="none", label_smoothing=label_smoothing)
            for each in (mixed.labels, mixed.others)
        )
        two = (mixed.kept * own + (1 - mixed.kept) * other).mean()
        found = loss(network, mixed.images, targets, label_smoothing)
        torch.testing.assert_close(found, two, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_without_mixing_it_is_that_of_the_labels(label_smoothing):
    network, images = linear(), torch.randn(8, 3, 6, 6, generator=generator(0))
    labels = torch.arange(8) % CLASSES
    plain = CrossEntropy(Task(network, 1, CLASSES), label_smoothing=label_smoothing)
    wanted = plain(network, LabelledBatch(images, labels), 0)
    targets = F.one_hot(labels, CLASSES).float()
    objective = SoftCrossEntropy(Task(network, 1, CLASSES), label_smoothing=label_smoothing)
    found = objective(network, SoftBatch(images, targets), 0)
    torch.testing.assert_close(found["loss"], wanted["loss"])
    assert found["top1"] == wanted["top1"]


def test_smoothing_of_all_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing: 1.0, must be in \[0, 1\)"):
        SoftCrossEntropy(Task(linear(), 1, CLASSES), label_smoothing=1.0)
