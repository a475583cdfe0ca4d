"""Vision transformers: their parts, and what torchvision's is and has."""

import re

import pytest
import torch
from torch import nn
from torchvision.models import vision_transformer as theirs

from raykb.models import MODELS
from raykb.models.vit import VisionTransformer
from raykb.parts.backbone import WithPatches, require
from raykb.parts.transformer import Block, DropPath, sine_cosine_positions


def small(**options):
    torch.manual_seed(0)
    return VisionTransformer(
        3, 1, **{"image_size": 8, "patch": 2, "width": 8, "depth": 2, "heads": 2} | options
    )


def images(side=8, count=3):
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def test_it_computes_what_torchvisions_does_by_torchvisions_state():
    torch.manual_seed(0)
    other = theirs.VisionTransformer(32, 8, 3, 2, 16, 64, num_classes=5)
    nn.init.normal_(other.heads.head.weight)
    own = VisionTransformer(5, image_size=32, patch=8, width=16, depth=3, heads=2)
    own.load_state_dict(other.state_dict())
    seen = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(own(seen), other(seen), rtol=1e-5, atol=1e-6)
    own.eval(), other.eval()
    with torch.inference_mode():
        torch.testing.assert_close(own(seen), other(seen), rtol=1e-5, atol=1e-6)


def test_vit_b_16_has_torchvisions_names_and_shapes():
    with torch.device("meta"):
        own, other = MODELS["vit_b_16"](1000), theirs.vit_b_16()
    shapes = [{k: v.shape for k, v in one.state_dict().items()} for one in (own, other)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_b_16", 86_567_656),
        ("vit_small_patch16", 22_050_664),  # of timm's table
    ],
)
def test_the_named_ones_have_their_size(name, parameters):
    with torch.device("meta"):
        network = MODELS[name](1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_tokens_are_those_of_its_two_parts_and_features_are_of_them():
    network = small(pool="mean")
    assert require(network, WithPatches, "a method") is network
    tokens = network.tokens(images())
    assert tokens.shape == (3, 16, 8)
    embedded = network.embed(images()) + network.positions(images())
    assert torch.equal(network.encode(embedded), tokens)
    assert torch.equal(network.features(images()), tokens.mean(1))
    assert not torch.allclose(small().features(images()), tokens.mean(1), atol=1e-3)


def test_a_patch_sees_its_pixels_alone_until_it_is_encoded():
    network, seen = small(), images()
    other = seen.clone()
    other[:, :, 2:4, 4:6] += 1.0  # row 1, column 2 of four
    changed = (network.embed(other) - network.embed(seen)).abs().amax(2)
    assert changed.nonzero()[:, 1].tolist() == [6] * 3


def test_the_order_of_patches_is_in_their_positions_alone():
    network = small()
    embedded = network.embed(images()) + network.positions(images())
    order = torch.randperm(16)
    torch.testing.assert_close(
        network.encode(embedded[:, order]), network.encode(embedded)[:, order]
    )


def test_the_mean_over_blocks_is_of_their_outputs():
    network, last = small(), []
    for layer in network.encoder.layers:
        layer.register_forward_hook(lambda module, args, output: last.append(output))
    embedded = network.embed(images())
    both = network.encode(embedded, blocks=(1, 2))
    wanted = network.encoder.ln((last[0] + last[1]) / 2)[:, 1:]
    torch.testing.assert_close(both, wanted)
    assert torch.equal(network.encode(embedded, blocks=(2,)), network.encode(embedded))


def test_positions_of_other_sizes_are_interpolated_between_the_own():
    network = small(position="sine_cosine")
    own = network.positions(images())
    assert own is not network.encoder.pos_embedding
    assert torch.equal(own[0], sine_cosine_positions(4, 4, 8))
    finer = network.positions(torch.empty(1, 1, 16, 32))
    assert finer.shape == (1, 8 * 16, 8)
    with torch.no_grad():
        network.encoder.pos_embedding.fill_(0.5)
    assert torch.allclose(network.positions(torch.empty(1, 1, 16, 32)), torch.tensor(0.5))
    assert network(images(16)).shape == (3, 3)


def test_fixed_positions_are_not_trained_and_learned_ones_are():
    for position, trained in (("sine_cosine", False), ("learned", True)):
        assert small(position=position).encoder.pos_embedding.requires_grad == trained


def test_waves_are_those_of_a_loop():
    found = sine_cosine_positions(2, 3, 8)
    for row in range(2):
        for column in range(3):
            wanted = []
            for place in (column, row):
                angles = torch.tensor([place * 1.0, place / 100.0])
                wanted += [*angles.sin(), *angles.cos()]
            torch.testing.assert_close(found[3 * row + column], torch.stack(wanted))
    with pytest.raises(ValueError, match=r"^channels: 6; must be a multiple of 4"):
        sine_cosine_positions(2, 3, 6)


def test_drop_path_leaves_out_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(20_000, 1, 2))
    assert torch.equal(out[:, :, 0], out[:, :, 1])
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(layer.eval()(out), out)


def test_drop_path_rises_with_the_blocks():
    rates = [block.drop_path.rate for block in small(depth=3, drop_path=0.2).encoder.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    network = small(drop_path=0.5)
    assert not torch.equal(network(images()), network(images()))
    assert torch.equal(network.eval()(images()), network(images()))


def test_a_block_whose_branches_are_left_out_is_the_identity():
    torch.manual_seed(0)
    block, tokens = Block(8, 2, hidden=16, drop_path=0.9999999), torch.rand(4, 3, 8)
    assert torch.equal(block(tokens), tokens)


def test_all_weights_start_within_xaviers_bounds():
    network = small(width=64, heads=4)
    for name, weight in network.named_parameters():
        if weight.ndim == 2 or ("conv" in name and weight.ndim == 4):
            flat = weight.flatten(1)
            bound = (6 / sum(flat.shape)) ** 0.5
            assert flat.abs().max() <= bound
            assert flat.std().item() == pytest.approx(bound / 3**0.5, rel=0.2), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "width=8, heads=3, image_size=8, patch=2: heads must divide the width"),
        ({"patch": 3}, "width=8, heads=2, image_size=8, patch=3: heads must divide the width"),
        ({"depth": 0}, "depth=0, drop_path=0.0: must be at least 1"),
        ({"drop_path": 1.0}, r"depth=2, drop_path=1.0: must be at least 1, and in \[0, 1\)"),
        ({"pool": "max"}, "pool='max', position='learned': must be 'class' or 'mean'"),
        ({"position": "none"}, "pool='class', position='none': must be 'class' or 'mean'"),
    ],
)
def test_settings_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        small(**options)


def test_images_that_the_patch_does_not_divide_are_refused():
    message = "images: 9 x 9 pixels; squares of 2 must fill them"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        small()(images(9))
