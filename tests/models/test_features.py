"""The features of any classifier are what its last linear layer makes logits of."""

import copy
import pickle

import pytest
import torch
from torch import nn

from raykb.models import MODELS
from raykb.models.features import WithProjection, classifier_of, logits_and_features

SMALL = {"wide_resnet": {"depth": 10, "width": 1}, "small_convnet": {"width": 4}}


def build(name):
    torch.manual_seed(0)
    return MODELS[name](5, 1, **SMALL.get(name, {})).eval()


@pytest.mark.parametrize("name", ["small_convnet", "wide_resnet", "resnet18"])
def test_the_classifier_makes_the_logits_of_the_features(name):
    model, images = build(name), torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        logits, features = logits_and_features(model, images)
        assert torch.equal(logits, model(images))
        assert torch.equal(classifier_of(model)(features), logits)
    assert features.shape == (3, classifier_of(model).in_features)


def test_nothing_stays_on_the_network():
    model = build("small_convnet")
    logits_and_features(model, torch.rand(1, 1, 16, 16))
    assert not classifier_of(model)._forward_pre_hooks


def test_a_network_that_fails_keeps_nothing_either():
    model = build("small_convnet")
    with pytest.raises(RuntimeError):
        logits_and_features(model, torch.rand(1, 7, 16, 16))
    assert not classifier_of(model)._forward_pre_hooks


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match="network: Sequential has no linear layer, whose input"):
        classifier_of(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_a_head_projects_the_features_and_both_are_trained():
    model = WithProjection(build("small_convnet"), nn.Linear(36 * 4, 2))
    images = torch.rand(3, 1, 16, 16)
    logits, projections = model(images)
    expected_logits, features = logits_and_features(model.classifier, images)
    assert torch.equal(logits, expected_logits)
    assert torch.equal(projections, model.head(features))
    (logits.sum() + projections.square().sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_copies_agree():
    model = WithProjection(build("small_convnet"), nn.Linear(36 * 4, 2))
    images = torch.rand(3, 1, 16, 16)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for mine, its in zip(model(images), twin(images), strict=True):
            assert torch.equal(mine, its)
