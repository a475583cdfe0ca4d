"""Networks whose maps are functions of the image, and coloured images to judge them by."""

import numpy as np
import torch
from torch import nn

from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.evaluate.backbone import JudgedBy

CPU, SIDE, CLASSES = torch.device("cpu"), 12, 3


class Maps(nn.Module):
    """A backbone with the maps that ``make`` has of images (N, C, H, W)."""

    width = map_width = CLASSES

    def __init__(self, make):
        super().__init__()
        self.maps = make

    def features(self, images):
        return self.maps(images).mean((2, 3))

    def classify(self, features):
        return features


def coloured(count, *, seed=1):
    """Return labelled images of one colour each, red, green or blue, which is their class."""
    labels = np.arange(count) % CLASSES
    pixels = 200 * np.eye(CLASSES, dtype=np.uint8)[labels][:, :, None, None]
    pixels = np.broadcast_to(pixels, (count, CLASSES, SIDE, SIDE)).copy()
    images = ImageSet(pixels, labels, np.arange(count), ("red", "green", "blue"))
    view = ClassifierView(CropFlipView(mean=[0.0], std=[1.0]))
    return JudgedBy(images, images, view, CLASSES, seed, batch_size=50)
