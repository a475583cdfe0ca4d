import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.models import MODELS, small_convnet
from raykb.models.wide_resnet import WideBlock, wide_resnet
from raykb.parts.backbone import Backbone, WithMaps, WithTokens

SMALL: dict[str, dict[str, Any]] = {"wide_resnet": {"depth": 10, "width": 1}}


SIDES = {"vit_small_patch16": 16, "vit_b_16": 16}  # what has to divide the sides of images


def side(name: str, wanted: int) -> int:
    """Return the side of images that a network takes, at least as long as is wanted."""
    unit = SIDES.get(name, 1)
    return -(-wanted // unit) * unit


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(name: str, *args: Any, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name](*args, **options)


# The battery, for every network


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 64)])
def test_images_of_one_or_three_channels_become_logits(name: str, channels: int, size: int):
    model = on_meta(name, 7, channels, **SMALL.get(name, {}))
    size = side(name, size)
    logits = model(torch.empty(2, channels, size, size, device="meta"))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_three_channels_are_the_default_and_options_go_by_keyword(name: str):
    parameters = list(inspect.signature(MODELS[name]).parameters.values())
    assert [p.name for p in parameters[:2]] == ["classes", "channels"]
    assert parameters[1].default == 3
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[2:])


@pytest.mark.parametrize("name", ["small_convnet", "wide_resnet", "resnet18", "vit"])
def test_the_seed_decides_the_weights_and_copies_agree(name: str):
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(MODELS[name](10, 1, **SMALL.get(name, {})).eval())
    images = torch.rand(2, 1, 16, 16)
    first, same, other = (model(images) for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    for twin in (copy.deepcopy(models[0]), pickle.loads(pickle.dumps(models[0]))):
        assert torch.equal(twin(images), first)


@pytest.mark.parametrize("name", ["small_convnet", "wide_resnet", "resnet18", "vit"])
def test_every_parameter_receives_a_gradient(name: str):
    torch.manual_seed(0)
    model = MODELS[name](10, 1, **SMALL.get(name, {}))
    nn.functional.cross_entropy(model(torch.rand(4, 1, 16, 16)), torch.arange(4)).backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label


@pytest.mark.parametrize("name", sorted(MODELS))
def test_features_and_what_they_come_of_have_the_axes_that_they_say(name: str):
    model: Any = on_meta(name, 7, 1, **SMALL.get(name, {}))
    images = torch.empty(2, 1, 32, 32, device="meta")
    assert isinstance(model, Backbone)
    assert model.features(images).shape == (2, model.width)
    assert model.classify(torch.empty(5, model.width, device="meta")).shape == (5, 7)
    assert isinstance(model, WithMaps | WithTokens)
    if isinstance(model, WithMaps):
        count, channels, _, _ = model.maps(images).shape
        assert count == 2
        assert channels == model.map_width
        assert model.width % channels == 0  # the places that are left by the pooling
    if isinstance(model, WithTokens):
        tokens = model.tokens(images).shape
        assert (tokens[0], len(tokens), tokens[2]) == (2, 3, model.width)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_logits_are_those_of_the_features_bit_for_bit(name: str):
    torch.manual_seed(0)
    model: Any = MODELS[name](7, 1, **SMALL.get(name, {}))
    size = side(name, 8)
    twin, images = copy.deepcopy(model), torch.rand(3, 1, size, size)
    for network in (model, twin):
        network.train()
    assert torch.equal(twin.classify(twin.features(images)), model(images))
    for label, value in model.named_buffers():  # of batch norm
        assert torch.equal(twin.get_buffer(label), value), label
    model.eval()
    with torch.inference_mode():
        assert torch.equal(model.classify(model.features(images)), model(images))


# Wide residual networks


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("wide_resnet_40_2", 2_246_474, 0.356e9),
        ("wide_resnet_28_2", 1_469_642, 0.243e9),
        ("wide_resnet_28_8", 23_362_922, 3.81e9),
        ("wide_resnet_28_10", 36_489_290, 5.95e9),
    ],
)
def test_wide_resnets_have_the_papers_size_and_cost(name: str, parameters: int, macs: float):
    model = on_meta(name, 10)
    assert parameters_of(model) == parameters
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=2e-3)


def test_named_wide_resnets_are_the_general_one():
    for name, depth, width in (("wide_resnet_40_2", 40, 2), ("wide_resnet_28_10", 28, 10)):
        options = {"dropout": 0.3, "bn_momentum": 0.9}
        named = on_meta(name, 10, 1, **options)
        general = on_meta("wide_resnet", 10, 1, depth=depth, width=width, **options)
        assert str(named) == str(general)


def test_options_reach_every_block():
    model = wide_resnet(10, depth=16, width=1, dropout=0.3, bn_momentum=0.9)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert len(norms) == 2 * 6 + 1
    assert len(drops) == 6
    assert {norm.momentum for norm in norms} == {0.9}
    assert {drop.p for drop in drops} == {0.3}
    by_default = wide_resnet(10, depth=10, width=1)
    assert {m.momentum for m in by_default.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_the_networks_of_semi_supervised_learning_are_the_general_one_with_leaky_relu():
    for name, width in (("wide_resnet_28_2", 2), ("wide_resnet_28_8", 8)):
        options = {"dropout": 0.3, "bn_momentum": 0.9}
        general = on_meta(
            "wide_resnet", 10, 1, depth=28, width=width, negative_slope=0.1, **options
        )
        assert str(on_meta(name, 10, 1, **options)) == str(general)
        plain = on_meta("wide_resnet", 10, 1, depth=28, width=width, **options)
        assert str(on_meta(name, 10, 1, negative_slope=0.0, **options)) == str(plain)


def test_the_slope_reaches_every_activation():
    slopes = [
        module.negative_slope
        for module in wide_resnet(10, depth=10, width=1, negative_slope=0.3).modules()
        if isinstance(module, nn.LeakyReLU)
    ]
    assert slopes == [0.3] * 7
    default = wide_resnet(10, depth=10, width=1).modules()
    assert sum(isinstance(module, nn.ReLU) for module in default) == 7


def test_a_block_that_keeps_its_shape_adds_to_its_input():
    block = WideBlock(4, 4, 1, dropout=0.0, bn_momentum=0.1)
    x = torch.rand(2, 4, 6, 6)
    assert torch.allclose(block(x) - block.residual(x), x, atol=1e-6)
    assert block.residual[2].stride == (1, 1)
    assert WideBlock(4, 8, 2, dropout=0.0, bn_momentum=0.1).residual[6].stride == (2, 2)


@pytest.mark.parametrize(("depth", "width"), [(41, 2), (4, 2), (40, 0)])
def test_other_depths_are_refused(depth: int, width: int):
    with pytest.raises(ValueError, match=rf"depth={depth}, width={width}: depth must be 6n \+ 4"):
        wide_resnet(10, depth=depth, width=width)


# Residual networks


@pytest.mark.parametrize(
    ("name", "stem", "parameters"),
    [
        ("resnet18", "large", 11_689_512),  # torchvision's counts for ImageNet
        ("resnet50", "large", 25_557_032),
        ("resnet18", "small", 11_689_512 - 64 * 3 * (49 - 9)),
        ("resnet50", "small", 25_557_032 - 64 * 3 * (49 - 9)),
    ],
)
def test_the_stem_decides_the_resolution(name: str, stem: str, parameters: int):
    model = on_meta(name, 1000, stem=stem)
    assert parameters_of(model) == parameters
    features = model.maxpool(model.conv1(torch.empty(1, 3, 64, 64, device="meta")))
    assert features.shape[2:] == ((64, 64) if stem == "small" else (16, 16))


@pytest.mark.parametrize(("name", "norm"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual_silences_the_last_norm(name: str, norm: str):
    model = MODELS[name](10, zero_init_residual=True)
    assert getattr(model.layer1[0], norm).weight.abs().sum() == 0
    assert getattr(MODELS[name](10).layer1[0], norm).weight.sum() > 0


def test_an_unknown_stem_is_refused():
    with pytest.raises(ValueError, match=r"stem='tiny': must be one of \('small', 'large'\)"):
        MODELS["resnet18"](10, stem="tiny")


# The small network


def test_the_small_network_is_small_and_scales_with_its_width():
    assert parameters_of(on_meta("small_convnet", 10, 1)) == 66_170
    assert parameters_of(on_meta("small_convnet", 10, 1, width=8)) < 66_170 / 3


def standardised(part: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(part.images).float().div(255).sub(0.286).div(0.353)
    return images, torch.from_numpy(part.labels)


def test_the_small_network_learns_fashion_mnist_from_2000_images():
    train, test = DATASETS["fashion_mnist_sample"](train_size=2000)
    images, labels = standardised(train)
    torch.manual_seed(0)
    model = small_convnet(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 6 * 31, pct_start=0.15)
    for _ in range(6):
        for rows in torch.randperm(2000)[: 31 * 64].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    images, labels = standardised(test)
    with torch.inference_mode():
        accuracy = (model.eval()(images).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.80
