"""Outliers by the largest softmax."""

import numpy as np
import torch
from torch import nn

from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.evaluate.outliers import OutlierDetection

CPU = torch.device("cpu")
VIEW = ClassifierView(CropFlipView(mean=[0.0], std=[1.0]))


class Brightness(nn.Module):
    """The brighter an image, the surer; of the first class or the second."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, images):
        sure = self.scale * images.mean((1, 2, 3))
        return torch.stack([sure, -sure], 1)


def examples(values):
    """Return images of one brightness each."""
    pixels = np.array(values, np.uint8)[:, None, None, None].repeat(8, 2).repeat(8, 3)
    labels = np.arange(len(values)) % 2
    return ImageSet(pixels, labels, np.arange(len(values)), ("a", "b"))


def found(inside, outside, scale=1.0):
    evaluation = OutlierDetection(examples(inside), examples(outside), VIEW, batch_size=2)
    return evaluation(Brightness(scale), CPU).figures["auroc"]


def test_images_that_a_network_is_surer_of_lie_above_the_others():
    assert found([200, 210, 220], [10, 20]) == 1.0
    assert found([10, 20], [200, 210, 220]) == 0.0
    assert found([10, 100], [50]) == 0.5


def test_sure_answers_do_not_tie():
    assert found([255, 250], [240, 235], scale=10.0) == 1.0  # softmax of 1 - 1e-8 and above
