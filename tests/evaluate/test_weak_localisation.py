"""Boxes of maps: about the largest piece, and of the head's own class."""

import pytest
import torch
from mapped import CPU, coloured

from raykb.data.scenes import Composition, Scenes
from raykb.evaluate.weak_localisation import WeakLocalisation, class_activation, found_boxes, heads
from raykb.models import MODELS


def test_a_box_is_about_the_largest_piece_above_the_threshold():
    maps = torch.zeros(1, 8, 8) - 3.0
    maps[0, 1:4, 2:7], maps[0, 6, 0] = 5.0, 9.0
    assert found_boxes(maps, 8, 0.2).tolist() == [[2.0, 1.0, 7.0, 4.0]]


def test_after_a_mean_class_activation_is_that_of_the_weights():
    network = MODELS["resnet18"](3, 3).eval()
    maps = torch.randn(2, 512, 2, 2)
    seen = class_activation(network, maps)
    wanted = torch.einsum("nc,nchw->nhw", network.fc.weight[seen.labels], maps) / 4
    torch.testing.assert_close(seen.maps, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "own"), [("small_convnet", 1), ("spatially_attentive", 2)])
def test_every_head_of_a_network_is_scored(name, own):
    network, judged = MODELS[name](3, 3).eval(), coloured(12)
    scenes = Scenes(judged.test, Composition(canvas=1.5, objects=(1, 1)))
    found = WeakLocalisation(scenes=8).of(scenes, [0.0], [1.0])(network, CPU)
    assert len(heads(network, torch.rand(2, 3, 18, 18))) == own
    assert len(found.figures) == 3 * own
    assert all(0 <= value <= 1 for value in found.figures.values())
    assert len(found.details["cam"]["boxes"]) == 6
