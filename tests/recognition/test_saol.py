"""SAOL: what its mixture is, where its gradients go, and which way it moves a small network."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raykb.engine.assemble import filled
from raykb.engine.objective import Task
from raykb.engine.seeding import generator
from raykb.models import MODELS
from raykb.models.spatially_attentive import SpatiallyAttentive
from raykb.parts.backbone import LayeredClassifier
from raykb.parts.batch_norm import statistics_kept
from raykb.parts.spatial_output import log_mixture, places
from raykb.recognition import MIXINGS
from raykb.recognition.cross_entropy import SoftCrossEntropy
from raykb.recognition.mixed_feed import mixed_fields
from raykb.recognition.saol import SAOL, distillation_loss, donor_loss, mask_loss, pasted_cells

CLASSES = 4


def attentive(**options):
    torch.manual_seed(0)
    return MODELS["spatially_attentive"](CLASSES, 1, options={"width": 4}, head_width=8, **options)


def mixed(images, labels, seed=0, **settings):
    """Return the fields of a batch whose images are all mixed by CutMix."""
    drawn = MIXINGS["cutmix"](probability=1.0, **settings).draw(images, generator(seed))
    return mixed_fields({"images": images, "labels": labels}, drawn, CLASSES)


def fields(size=6, seed=0):
    images = torch.randn(size, 1, 28, 28, generator=generator(seed))
    return mixed(images, torch.arange(size) % CLASSES, seed)


def drawn(seed=0, scale=1.0):
    """Return log A (5, 1, 3, 4) and log Y (5, K, 3, 4)."""
    numbers = generator(seed)
    scores = scale * torch.randn(5, 1 + CLASSES, 3, 4, generator=numbers)
    return places(scores[:, :1]), scores[:, 1:].log_softmax(1)


# ---------------------------------------------------------------------- the layer


def test_attention_sums_to_one_over_places_and_evidence_and_mixture_over_classes():
    network = attentive()
    seen = network.evidence(fields()["images"])
    attention, classes = seen.attention.exp(), seen.classes.exp()
    mixture = log_mixture(seen.attention, seen.classes).exp()
    for sums in (attention.sum((1, 2, 3)), classes.sum(1), mixture.sum(1)):
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-6, rtol=0.0)
    assert attention.shape == (6, 1, 3, 3)
    assert classes.shape == (6, CLASSES, 3, 3)
    assert attention.std() > 0


def test_evidence_that_is_the_same_everywhere_is_the_mixture_whatever_the_attention():
    attention, classes = drawn()
    everywhere = classes[:, :, :1, :1].expand_as(classes)
    found = log_mixture(attention, everywhere)
    torch.testing.assert_close(found, classes[:, :, 0, 0])


def test_attention_to_one_place_takes_the_evidence_there():
    _, classes = drawn()
    attention = torch.full((5, 1, 3, 4), -math.inf)
    attention[:, :, 2, 1] = 0.0
    assert torch.equal(log_mixture(attention, classes), classes[:, :, 2, 1])


def test_even_attention_to_a_linear_map_of_each_place_is_pooling_and_a_linear_layer():
    maps, weight = torch.rand(5, 7, 3, 4, generator=generator(1)), torch.rand(CLASSES, 7)
    each = F.conv2d(maps, weight[:, :, None, None])  # above 0, so that it has a logarithm
    even = places(torch.zeros(5, 1, 3, 4))
    found = log_mixture(even, each.log()).exp()
    torch.testing.assert_close(found, F.linear(maps.mean((2, 3)), weight), atol=1e-5, rtol=0.0)


def test_the_mixture_is_the_plain_sum_and_stays_finite_where_that_does_not():
    attention, classes = drawn()
    plain = (attention.exp() * classes.exp()).sum((2, 3)).log()
    torch.testing.assert_close(log_mixture(attention, classes), plain)
    scores = 100.0 * torch.sign(torch.randn(2, 1, 3, 4, generator=generator(3)))
    far = torch.where(torch.arange(CLASSES).view(-1, 1, 1) == 1, 100.0, -100.0).expand(2, -1, 3, 4)
    found = log_mixture(places(scores), far.log_softmax(1))
    assert found.isfinite().all()
    assert found.min() < -150  # whose exponential is 0


def test_either_head_is_the_networks_output_and_the_spatial_one_needs_no_softmax():
    images = fields()["images"]
    linear, spatial = attentive().eval(), attentive(output="spatial").eval()
    assert linear.state_dict().keys() == spatial.state_dict().keys()
    seen = linear.evidence(images)
    assert torch.equal(linear(images), seen.logits)
    assert torch.equal(spatial(images), log_mixture(seen.attention, seen.classes))
    torch.testing.assert_close(spatial(images).log_softmax(1), spatial(images))


@pytest.mark.parametrize(
    ("name", "options", "widths"),
    [
        ("small_convnet", {"width": 4}, [8, 16, 16]),
        ("wide_resnet", {"depth": 10, "width": 1}, [16, 32, 64]),
        ("resnet18", {}, [64, 128, 256, 512]),
    ],
)
def test_stages_halve_and_end_in_the_maps(name, options, widths):
    network = MODELS[name](CLASSES, 1, **options).eval()
    images = torch.rand(2, 1, 32, 32, generator=generator(0))
    found = network.stages(images)
    assert [maps.shape[1] for maps in found] == network.stage_widths == widths
    sides = [maps.shape[2] for maps in found]
    assert sides == [sides[0] // 2**n for n in range(len(sides))]
    assert torch.equal(found[-1], network.maps(images))
    assert torch.equal(network.classify(network.pooled(found[-1])), network(images))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"backbone": "vit"}, "backbone: 'vit', must be one of small_convnet, "),
        ({"backbone": "resnet18", "options": {"depth": 3}}, "options: .*depth.* of resnet18"),
        ({"output": "both"}, "output: 'both'; .* one of linear, spatial"),
        ({"head_width": 0}, "head_width: 0"),
    ],
)
def test_what_it_cannot_be_made_of_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        MODELS["spatially_attentive"](CLASSES, 1, **given)


# ---------------------------------------------------------------------- its losses


def test_a_cell_is_pasted_where_half_of_it_is_and_a_small_box_vanishes():
    masks = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    masks[0, :, :4, 2:6] = False  # of two cells of four pixels one half each
    masks[1, :, :2, :2] = False  # a quarter of a cell
    cells = pasted_cells(masks, (8, 8), (2, 2))
    assert cells[0, 0].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert cells[1].sum() == 0
    assert pasted_cells(masks[:, :, :1, :1], (8, 8), (2, 2)).shape == (2, 1, 2, 2)


def test_what_is_pasted_is_the_donors_and_its_share_is_that_of_the_label():
    images = torch.randn(6, 1, 28, 28, generator=generator(0))
    for seed in range(5):
        found = mixed(images, torch.arange(6) % CLASSES, seed, per_sample=True)
        masks = found["masks"]
        assert torch.equal(found["images"][masks], images[masks])
        assert torch.equal(found["images"][~masks], found["donors"][~masks])
        own = F.one_hot(torch.arange(6) % CLASSES, CLASSES).bool()
        kept = masks.float().mean((1, 2, 3))
        assert (found["targets"][own] >= kept - 1e-6).all()


def test_a_donor_that_fills_the_image_says_the_same_in_evaluation():
    network, batch = attentive().eval(), fields()
    masks = torch.zeros_like(batch["masks"])
    objective = SAOL(Task(network, 1, CLASSES)).eval()
    whole = batch | {"masks": masks, "images": batch["donors"]}
    assert objective(network, filled(objective, whole), 0)["loss_donor"] == 0
    apart = objective(network, filled(objective, batch | {"masks": masks}), 0)
    assert apart["loss_donor"] > 0


def test_where_nothing_is_pasted_the_loss_of_the_donor_is_zero():
    (_, classes), (_, donors) = drawn(0), drawn(1)
    assert donor_loss(classes, donors, torch.zeros(5, 1, 3, 4)) == 0
    pasted = torch.zeros(5, 1, 3, 4)
    pasted[1, :, 2, 3] = 1.0
    one = F.kl_div(donors[1, :, 2, 3], classes[1, :, 2, 3], reduction="sum", log_target=True)
    torch.testing.assert_close(donor_loss(classes, donors, pasted), one)


@pytest.mark.parametrize(("kept", "weight"), [(1.0, 1.0), (0.0, 0.0)])
def test_donors_that_do_not_matter_are_not_looked_at(kept, weight):
    network, batch = attentive(), fields()
    batch |= {"donors": batch["donors"] * math.nan, "masks": torch.full((6, 1, 1, 1), kept)}
    objective = SAOL(Task(network, 1, CLASSES), donor_weight=weight)
    terms = objective(network, filled(objective, batch), 0)
    assert terms["loss_donor"] == 0
    assert terms["loss"].isfinite()


def test_the_divergence_teaches_the_linear_head_and_not_the_spatial_one():
    network = attentive().requires_grad_(True)
    seen = network.evidence(fields()["images"])
    loss = distillation_loss(seen.logits, log_mixture(seen.attention, seen.classes))
    loss.backward()
    assert all(each.grad is None for each in network.spatial.parameters())
    assert network.backbone[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("detach_donor", [True, False])
def test_donors_leave_no_trace_in_running_statistics_and_no_gradient_unless_it_is_wanted(
    detach_donor,
):
    once, network = attentive(), attentive()
    objective = SAOL(Task(network, 1, CLASSES), detach_donor=detach_donor)
    batch = fields()
    donors = batch["donors"].clone().requires_grad_()
    terms = objective(network, filled(objective, batch | {"donors": donors}), 0)
    terms["loss"].backward()
    assert (donors.grad is None) == detach_donor
    once.evidence(batch["images"])
    for name, value in once.named_buffers():
        assert torch.equal(network.get_buffer(name), value), name
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_statistics_are_kept_where_a_pass_fails_and_norms_that_have_none_stay_so():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False))
    with pytest.raises(RuntimeError), statistics_kept(network):
        network(torch.zeros(2, 3, 4, 4))
    assert [norm.track_running_stats for norm in network] == [True, False]


def test_the_loss_is_its_weighted_parts_and_says_how_large_the_heads_are():
    network = attentive()
    settings = {"mask_weight": 2.0, "donor_weight": 3.0, "distillation_weight": 0.5}
    objective = SAOL(Task(network, 1, CLASSES), **settings)
    terms = objective(network, filled(objective, fields()), 0)
    parts = ("loss_output", "loss_mask", "loss_donor", "loss_distillation")
    total = sum(
        weight * terms[name] for weight, name in zip((1.0, *settings.values()), parts, strict=True)
    )
    torch.testing.assert_close(terms["loss"].detach(), total)
    layer = network.backbone[-1]
    assert terms["linear_params"] == layer.weight.numel() + layer.bias.numel()
    assert terms["head_params"] == sum(each.numel() for each in network.spatial.parameters())


def test_a_network_without_the_layer_and_a_weight_below_zero_are_refused():
    plain = MODELS["small_convnet"](CLASSES, 1)
    with pytest.raises(ValueError, match="has no evidence, spatial, which saol needs"):
        SAOL(Task(plain, 1, CLASSES))
    with pytest.raises(ValueError, match=r"donor_weight: -1\.0, must be at least 0"):
        SAOL(Task(attentive(), 1, CLASSES), donor_weight=-1.0)


# ---------------------------------------------------------------------- which way it moves


SIDE, BLOB = 32, 6


def blobs(size, seed):
    """Return noise with a blob of a pattern of its class at any place, labels, and corners."""
    numbers = generator(seed, "blobs")
    patterns = torch.randn(CLASSES, BLOB, BLOB, generator=generator(0, "patterns")).sign()
    images = torch.randn(size, 1, SIDE, SIDE, generator=numbers)
    labels = torch.arange(size) % CLASSES
    corners = torch.randint(SIDE - BLOB + 1, (size, 2), generator=numbers)
    for image, label, (y, x) in zip(images, labels, corners.tolist(), strict=True):
        image[0, y : y + BLOB, x : x + BLOB] += 2.0 * patterns[label]
    return images, labels, corners


def levels(size, seed):
    """Return images of a level each, on which a paste is seen as it is not in noise, and labels."""
    numbers = generator(seed, "levels")
    images = torch.randn(size, 1, 1, 1, generator=numbers)
    images = images + 0.1 * torch.randn(size, 1, SIDE, SIDE, generator=numbers)
    return images, torch.arange(size) % CLASSES


def four_layers():
    """Return a network of four convolutions whose last maps are 8 x 8."""
    widths, layers = (1, 4, 16, 16, 16), []
    for n, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, 1 + (n in (1, 2)), padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return LayeredClassifier(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES)
    )


def attentive_layers():
    return SpatiallyAttentive(four_layers(), CLASSES, stages=3, head_width=16, output="spatial")


@torch.enable_grad()
def trained(seed, *, of=blobs, mixing, network=attentive_layers, method=SAOL, epochs=6, **settings):
    """Return a network and its objective after a training on 512 images."""
    torch.manual_seed(seed)
    network = network()
    objective = method(Task(network, 1, CLASSES), **settings)
    images, labels, *_ = of(512, seed)
    optimizer = torch.optim.Adam([*network.parameters(), *objective.parameters()], lr=0.005)
    for step in range(epochs * 8):
        rows = torch.randperm(512, generator=generator(seed, step))[:64]
        mix = mixing.draw(images[rows], generator(seed, "mixing", step))
        batch = mixed_fields({"images": images[rows], "labels": labels[rows]}, mix, CLASSES)
        optimizer.zero_grad()
        objective(network, filled(objective, batch), step)["loss"].backward()
        optimizer.step()
    return network.eval(), objective.eval()


def beside(seed):
    """Return hits of the layer and of a plain network, and how often A is right, and by chance."""
    none = MIXINGS["none"]()
    attentive, _ = trained(seed, mixing=none)
    plain, _ = trained(seed, mixing=none, network=four_layers, method=SoftCrossEntropy)
    images, labels, corners = blobs(400, 100 + seed)
    log_attention = attentive.evidence(images).attention
    at = log_attention.flatten(1).argmax(1)
    first, last = corners // 4 - 1, (corners + BLOB - 1) // 4 + 1  # cells, and one more around
    where = torch.stack([at // 8, at % 8], 1)
    inside = ((where >= first) & (where <= last)).all(1).float().mean()
    chance = (last.clamp(max=7) - first.clamp(min=0) + 1).prod(1).float().mean() / 64
    hits = [(of(images).argmax(1) == labels).float().mean() for of in (attentive, plain)]
    return *hits, inside, chance


@pytest.mark.slow
@torch.no_grad()
def test_a_class_that_is_at_one_place_is_seen_better_and_attention_lies_there():
    for seed in range(3):
        hits, plain, inside, chance = beside(seed)
        assert hits >= plain
        assert inside >= 3 * chance


def mask_loss_after(weight):
    """Return L_SS1 on other images after a training with this weight, and that of a constant."""
    mixing = MIXINGS["cutmix"](probability=1.0, per_sample=True)
    weights = {"mask_weight": weight, "donor_weight": 0.0}
    network, objective = trained(0, of=levels, mixing=mixing, **weights)
    batch = mixed(*levels(256, 100), 5, per_sample=True)
    maps = network.evidence(batch["images"]).maps
    pasted = pasted_cells(batch["masks"], (SIDE, SIDE), maps.shape[2:])
    found = mask_loss(objective.mask(maps), pasted)
    constant = mask_loss(pasted.mean().logit().expand_as(pasted), pasted)
    return found.item(), constant.item()


@pytest.mark.slow
@torch.no_grad()
def test_what_was_pasted_is_learnt_by_its_loss_alone():
    (learnt, constant), (without, _) = mask_loss_after(1.0), mask_loss_after(0.0)
    assert learnt < constant - 0.02
    assert without > constant
    assert without == pytest.approx(math.log(2), abs=0.1)  # of a branch as it was drawn
