"""An ensemble is the mean of probabilities, not of logits or labels."""

import pytest
import torch
from torch import nn

from raykb.evaluate.ensemble import mean_probabilities
from raykb.evaluate.sliding_window import SlidingWindow

pytest.importorskip("monai", reason="in the extra 'medical'")

CPU = torch.device("cpu")
WINDOW = SlidingWindow(tile=(4, 4, 4))
IMAGE = torch.randn(1, 6, 4, 5)


def networks(*classes):
    torch.manual_seed(0)
    return [nn.Conv3d(1, count, 1) for count in classes]


def test_it_is_the_mean_over_networks_of_the_softmax_of_their_logits():
    each = networks(3, 3, 3)
    found = mean_probabilities(iter(each), IMAGE, WINDOW, CPU)
    wanted = torch.stack([network(IMAGE[None])[0].softmax(0) for network in each]).mean(0)
    assert found.shape == (3, 6, 4, 5)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_networks_are_asked_for_one_after_another():
    alive = []

    def made():
        for network in networks(2, 2):
            alive.append(len(alive))
            yield network
            assert not network.training

    mean_probabilities(made(), IMAGE, WINDOW, CPU)
    assert alive == [0, 1]


def test_no_network_and_networks_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="networks: none, must be at least one"):
        mean_probabilities([], IMAGE, WINDOW, CPU)
    with pytest.raises(ValueError, match="networks: of 2 and 3 classes, must be of the same"):
        mean_probabilities(networks(2, 3), IMAGE, WINDOW, CPU)
