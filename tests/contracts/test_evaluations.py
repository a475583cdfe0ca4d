"""The contract of an evaluation: figures that are numbers, details that are JSON, nothing moved."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from raykb.data.decathlon import read_task
from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.phantoms import write_phantoms
from raykb.data.views import CropFlipView
from raykb.data.volumes import open_volumes
from raykb.evaluate.backbone import BackboneEvaluation, JudgedBy
from raykb.evaluate.classification import Classification
from raykb.evaluate.corruption import Corruption
from raykb.evaluate.fine_tuning import FineTuning
from raykb.evaluate.knn import KNN
from raykb.evaluate.linear_probe import LinearProbe
from raykb.evaluate.localisation import Localisation
from raykb.evaluate.outliers import OutlierDetection
from raykb.evaluate.regions import Regions
from raykb.evaluate.retrieval import Retrieval
from raykb.evaluate.segmentation import Segmentation
from raykb.evaluate.sliding_window import SlidingWindow
from raykb.parts.backbone import LayeredClassifier

CPU, CLASSES = torch.device("cpu"), 3


def classification(folder):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    examples = ImageSet(images, np.arange(9) % CLASSES, np.arange(9), ("a", "b", "c"))
    return Classification(examples, ClassifierView(CropFlipView(mean=[0.5], std=[0.2])), CLASSES, 4)


def backbone(folder):
    labelled = classification(folder)
    protocols = {
        "linear_probe": LinearProbe(iterations=5),
        "knn": KNN(neighbours=3),
        "retrieval": Retrieval(),
        "fine_tuning": FineTuning(steps=2, batch_size=4, warmup=1),
        "corruption": Corruption(names=["shot_noise", "fog"], severities=[2], iterations=5),
    }
    by = JudgedBy(labelled.examples, labelled.examples, labelled.view, CLASSES, batch_size=4)
    return BackboneEvaluation(by, protocols)


def maps(folder):
    by = backbone(folder).by
    localisation = Localisation(train_scenes=8, test_scenes=7, iterations=5)
    protocols = {"regions": Regions(scenes=5, count=3), "localisation": localisation}
    return BackboneEvaluation(by, protocols)


def outliers(folder):
    own = classification(folder)
    others = ImageSet(255 - own.examples.images[:5], np.arange(5) % 2, np.arange(5), ("d", "e"))
    return OutlierDetection(own.examples, others, own.view, 4)


def segmentation(folder):
    (task,) = write_phantoms(folder, tasks=[4], cases=2, size=16)
    volumes = open_volumes(read_task(task), folder / "shards")
    window = SlidingWindow(tile=(8, 8, 8))
    return Segmentation(volumes.cases, volumes.classes, window, tolerance_mm=1.0)


MADE = {  # how each is made
    "classification": classification,
    "backbone": backbone,
    "maps": maps,
    "outliers": outliers,
    "segmentation": segmentation,
}


@pytest.fixture(params=MADE)
def case(request, tmp_path):
    """Return an evaluation, and a network that it is for, with dropout and a batch norm."""
    if request.param == "segmentation":
        pytest.importorskip("monai", reason="in the extra 'medical'")
        layers = [nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(), nn.ReLU()]
        layers += [nn.Conv3d(4, CLASSES, 1)]
    elif request.param == "maps":
        layers = [nn.Conv2d(1, 6, 3, 2, padding=1), nn.BatchNorm2d(6), nn.Dropout()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)]
    else:
        layers = [nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Dropout()]
        layers += [nn.Linear(6, CLASSES)]
    torch.manual_seed(0)
    return MADE[request.param](tmp_path), LayeredClassifier(*layers).eval()


def test_figures_are_finite_numbers_and_details_are_json(case):
    evaluation, network = case
    figures, details = evaluation(network, CPU)
    assert figures
    for name, value in figures.items():
        assert type(value) in (int, float), name
        assert math.isfinite(value), name
    assert json.loads(json.dumps(details, allow_nan=False)) == details


def test_the_same_network_has_the_same_figures(case):
    evaluation, network = case
    first = evaluation(network, CPU)
    torch.rand(3)
    assert evaluation(network, CPU) == first


def test_the_network_stays_as_it_was_and_gets_no_gradient(case):
    evaluation, network = case
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluation(network, CPU)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_it_travels_to_workers(case):
    evaluation, network = case
    assert pickle.loads(pickle.dumps(evaluation))(network, CPU) == evaluation(network, CPU)
