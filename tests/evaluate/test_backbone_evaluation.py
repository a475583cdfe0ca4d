import numpy as np
import pytest
import torch
from torch import nn

from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.engine.loop import Evaluated
from raykb.evaluate.backbone import BackboneEvaluation, JudgedBy, feature_key, spread
from raykb.models import MODELS
from raykb.parts.backbone import Backbone, LayeredClassifier, WithMaps

CPU = torch.device("cpu")
VIEW = ClassifierView(CropFlipView(mean=[0.5], std=[0.2]))


def images(count, seed):
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (count, 1, 12, 12), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count) % 3, np.arange(count), ("a", "b", "c"))


class Noted:
    """A protocol that keeps what it was given."""

    needs = Backbone

    def __call__(self, judged):
        self.train, self.test = judged.train, judged.test
        return Evaluated({"count": len(judged.train.rows)}, {"seen": 1})


def test_protocols_are_given_the_features_of_all_images_in_their_order():
    network, noted = MODELS["small_convnet"](3, 1, width=4).eval(), Noted()
    train, test = images(7, 0), images(5, 1)
    forwards = []
    network[0].register_forward_hook(lambda *_: forwards.append(1))
    by = JudgedBy(train, test, VIEW, 3, batch_size=3)
    evaluation = BackboneEvaluation(by, {"first": noted, "second": Noted()})
    figures, details = evaluation(network, CPU)
    assert len(forwards) == 3 + 2  # batches: for both protocols once
    wanted = network.features(VIEW.plain({"images": torch.from_numpy(test.images)})["images"])
    torch.testing.assert_close(noted.test.rows, wanted.detach())
    assert noted.train.labels.tolist() == train.labels.tolist()
    assert figures.keys() == {"spread", "first/count", "second/count"}
    assert details == {"first": {"seen": 1}, "second": {"seen": 1}}


def test_a_network_without_features_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no .* which an evaluation of features needs"):
        BackboneEvaluation(JudgedBy(images(3, 0), images(3, 1), VIEW, 3), {})(nn.Linear(2, 2), CPU)


class OfMaps(Noted):
    """A protocol that needs maps."""

    needs = WithMaps


def test_a_backbone_without_what_a_protocol_needs_is_refused():
    by = JudgedBy(images(3, 0), images(3, 1), VIEW, 3)
    network = LayeredClassifier(nn.Flatten(), nn.Linear(144, 6), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"has no map.*, which regions needs"):
        BackboneEvaluation(by, {"regions": OfMaps()})(network, CPU)


@pytest.mark.parametrize("other", [{"pool": "mean"}, {"heads": 1}])
def test_networks_of_the_same_weights_that_compute_other_features_have_other_keys(other):
    settings = {"image_size": 12, "width": 8, "depth": 1, "heads": 2, "pool": "class"}
    one, same, another = (
        MODELS["vit"](3, 1, **settings | changed).eval() for changed in ({}, {}, other)
    )
    for network in (same, another):
        network.load_state_dict(one.state_dict())
    keys = [feature_key(network, images(5, 1), VIEW) for network in (one, same, another)]
    assert keys[0] == keys[1] != keys[2]


def test_spread_is_one_where_features_point_everywhere_and_zero_where_they_collapsed():
    numbers = torch.Generator().manual_seed(0)
    even = torch.randn(4000, 16, generator=numbers)
    assert spread(even).item() == pytest.approx(1.0, abs=0.02)
    assert spread(torch.arange(1.0, 5.0)[:, None] * torch.ones(4, 8)).item() < 1e-6
