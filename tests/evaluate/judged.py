"""What a protocol looks at: features alone, or images that are told apart by their brightness."""

from types import SimpleNamespace

import numpy as np
import torch

from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.evaluate.backbone import Judged, JudgedBy

VIEW = ClassifierView(CropFlipView(mean=[0.0], std=[1.0], padding=0, flip=False))


def judged(train, test, classes=None):
    """Return features of training and test images as of a backbone under evaluation."""
    classes = classes or int(max(train.labels.max(), test.labels.max())) + 1
    return SimpleNamespace(train=train, test=test, by=SimpleNamespace(classes=classes, seed=0))


def bright_images(count, seed):
    """Return images of three classes, whose brightness tells the class, under noise."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    noise = numbers.integers(-30, 30, (count, 1, 8, 8))
    pixels = (40 + 80 * labels[:, None, None, None] + noise).astype(np.uint8)
    return ImageSet(pixels, labels, np.arange(count), ("a", "b", "c"))


def judged_by_images(network, train, test, seed=0, batch_size=500):
    """Return a network under evaluation by images of three classes."""
    by = JudgedBy(train, test, VIEW, 3, seed, batch_size)
    return Judged(network, torch.device("cpu"), by)
