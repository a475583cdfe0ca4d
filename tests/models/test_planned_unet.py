"""The U-Net of a plan: its stages are those that were asked for, and so are its outputs."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from raykb.models import SEGMENTERS
from raykb.models.planned_unet import PlannedUNet, unet_3d

THICK = {
    "strides": [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2)],
    "kernel_sizes": [(1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
    "widths": [4, 6, 8, 8],
}
FLAT = {"strides": [(1, 1), (2, 2)], "kernel_sizes": [(3, 3), (3, 3)], "widths": [4, 6]}
SMALL = {"planned_unet": THICK, "unet_3d": {"width": 4, "depth": 2}}


def thick(classes=3, channels=2, **options):
    torch.manual_seed(0)
    return PlannedUNet(classes, channels, **THICK | options)


# The battery, for every network that classifies voxels


@pytest.mark.parametrize("name", sorted(SEGMENTERS))
@pytest.mark.parametrize("channels", [1, 4])
def test_volumes_become_logits_of_their_size(name, channels):
    with torch.device("meta"):
        model = SEGMENTERS[name](7, channels, **SMALL[name]).eval()
        assert model(torch.empty(2, channels, 8, 16, 24)).shape == (2, 7, 8, 16, 24)


@pytest.mark.parametrize("name", sorted(SEGMENTERS))
def test_one_channel_is_the_default_and_options_go_by_keyword(name):
    parameters = list(inspect.signature(SEGMENTERS[name]).parameters.values())
    assert [p.name for p in parameters[:2]] == ["classes", "channels"]
    assert parameters[1].default == 1
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[2:])


@pytest.mark.parametrize("name", sorted(SEGMENTERS))
def test_the_seed_decides_the_weights_and_copies_agree(name):
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(SEGMENTERS[name](2, **SMALL[name]).eval())
    images = torch.rand(1, 1, 4, 16, 8)
    first, same, other = (model(images) for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    for twin in (copy.deepcopy(models[0]), pickle.loads(pickle.dumps(models[0]))):
        assert torch.equal(twin(images), first)


@pytest.mark.parametrize("name", sorted(SEGMENTERS))
def test_every_parameter_receives_a_gradient(name):
    torch.manual_seed(0)
    model = SEGMENTERS[name](2, **SMALL[name], deep_supervision=True)
    sum(logits.square().mean() for logits in model(torch.rand(2, 1, 4, 16, 8))).backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label


# Outputs


def test_in_training_there_are_logits_of_each_level_from_fine_to_coarse():
    found = thick()(torch.rand(2, 2, 4, 16, 24))
    assert isinstance(found, tuple)
    assert [tuple(logits.shape[1:]) for logits in found] == [
        (3, 4, 16, 24),
        (3, 4, 8, 12),
        (3, 2, 4, 6),
    ]


def test_in_evaluation_there_are_the_finest_alone():
    model, images = thick(), torch.rand(2, 2, 4, 16, 24)
    finest = model(images)[0]
    assert torch.allclose(model.eval()(images), finest, atol=1e-6)


def test_without_deep_supervision_there_is_one_head():
    model = thick(deep_supervision=False)
    assert len(model.heads) == 1
    assert model(torch.rand(1, 2, 2, 8, 16)).shape == (1, 3, 2, 8, 16)
    assert len(thick().heads) == 3


def test_slices_have_a_network_of_two_axes():
    model = PlannedUNet(2, **FLAT).eval()
    assert model(torch.rand(1, 1, 6, 4)).shape == (1, 2, 6, 4)


# What it is made of


def convolution(inputs, outputs, kernel):
    return inputs * outputs * kernel + outputs


def test_the_parameters_are_those_of_the_plans_stages():
    inputs, widths, kernels = [2, 4, 6, 8], THICK["widths"], [9, 27, 27, 27]
    steps = [4, 8, 4]  # voxels of the finer level to one of the coarser
    wanted = 0
    for level, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
        norms = 2 * 2 * width
        wanted += convolution(inputs[level], width, kernel) + convolution(width, width, kernel)
        wanted += norms
        if level < 3:
            wanted += convolution(2 * width, width, kernel) + convolution(width, width, kernel)
            wanted += norms
            wanted += convolution(widths[level + 1], width, steps[level])
            wanted += convolution(width, 3, 1)
    assert sum(parameter.numel() for parameter in thick().parameters()) == wanted


def test_norms_and_slopes_are_nnunets():
    modules = list(thick().modules())
    norms = [module for module in modules if isinstance(module, nn.InstanceNorm3d)]
    assert len(norms) == 2 * (4 + 3)
    assert all(norm.affine and norm.eps == 1e-5 for norm in norms)
    assert {m.negative_slope for m in modules if isinstance(m, nn.LeakyReLU)} == {0.01}


def test_biases_begin_at_zero_and_weights_by_hes_rule():
    model = unet_3d(2, width=32, depth=1)
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            assert module.bias.abs().sum() == 0
    weight = model.encoder[0][1][0].weight
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (32 * 27)) ** 0.5, rel=0.05)


def test_thin_kernels_keep_slices_apart():
    model = PlannedUNet(
        2, strides=[(1, 1, 1), (1, 2, 2)], kernel_sizes=[(1, 3, 3)] * 2, widths=[4, 4]
    )
    norms = [module for module in model.modules() if isinstance(module, nn.InstanceNorm3d)]
    for norm in norms:
        norm.eval()
        norm.forward = lambda x: x  # it looks at all of a volume
    images = torch.rand(1, 1, 4, 8, 8)
    other = images.clone()
    other[:, :, 2] += 1
    same = (model.eval()(images) == model(other)).all(dim=(0, 1, 3, 4))
    assert same.tolist() == [True, True, False, True]


def test_the_plain_network_doubles_its_width_up_to_the_most():
    model = unet_3d(2, 3, width=4, depth=3, most=12)
    assert [stage[0][0].out_channels for stage in model.encoder] == [4, 8, 12, 12]
    assert model.strides == [(1, 1, 1), *[(2, 2, 2)] * 3]
    assert model.encoder[0][0][0].in_channels == 3


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [4, 6]}, "of 4, 4 and 2 stages, must be of as many each, at least 2"),
        ({"widths": [4], "strides": [(1,)], "kernel_sizes": [(3,)]}, "of 1, 1 and 1 stages"),
        ({"strides": [(1, 1)] * 4}, r"strides, kernel_sizes: of \[2, 3\] axes, must be of 2 or 3"),
        ({"strides": [(2, 2, 2)] * 4}, r"strides\[0\]: \(2, 2, 2\), must be 1 along each axis"),
        ({"kernel_sizes": [(3, 2, 3)] * 4}, "kernel_sizes: .*, must be odd"),
    ],
)
def test_stages_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        thick(**options)


@pytest.mark.parametrize("size", [(3, 16, 16), (4, 12, 16), (8, 8)])
def test_images_that_the_coarsest_stage_does_not_divide_are_refused(size):
    with pytest.raises(ValueError, match=r"images: of .*, must be multiples of \(2, 8, 8\); pad"):
        thick()(torch.rand(1, 2, *size))
