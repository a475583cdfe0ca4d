"""A small network with patches, and batches for methods that fill in."""

import torch
from torch import nn

from raykb.engine.objective import Task
from raykb.models.vit import VisionTransformer
from raykb.parts.backbone import LayeredClassifier
from raykb.parts.patches import hidden_count
from raykb.selfsup.batch import BoxesBatch, CorruptedBatch, MaskedBatch

PATCH, SIDE = 2, 8


def transformer(seed=0, channels=3, **options):
    """Return a transformer without drop path, whose classifier is not trained."""
    torch.manual_seed(seed)
    settings = {"image_size": SIDE, "patch": PATCH, "width": 8, "depth": 2, "heads": 2} | options
    network = VisionTransformer(3, channels, **settings)
    network.heads.requires_grad_(False)
    return network


def convolutions(seed=0):
    """Return a network with maps, whose classifier is not trained."""
    torch.manual_seed(seed)
    layers = LayeredClassifier(
        nn.Conv2d(3, 4, 3, 2, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    layers[-1].requires_grad_(False)
    return layers


def task(network=None, steps=20):
    return Task(network or transformer(), steps)


def images(count=4, seed=1, channels=3):
    return torch.randn(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def masked(ratio, count=4, seed=1):
    """Return a batch some of whose 16 patches are hidden."""
    draws = torch.rand(count, 16, generator=torch.Generator().manual_seed(seed))
    mask = draws.argsort(1).argsort(1) < hidden_count(16, ratio)
    return MaskedBatch(images(count, seed), mask, torch.arange(count))


def corrupted(count=4, seed=1):
    """Return a batch about half of whose pixels are noise, or to be another image's."""
    numbers = torch.Generator().manual_seed(seed + 100)
    clean = images(count, seed)
    cells = torch.rand(count, 1, 4, 4, generator=numbers) < 0.5
    mask = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
    noise = torch.randn(clean.shape, generator=numbers)
    alien = torch.arange(count) % 2 == 0
    return CorruptedBatch(clean, torch.where(mask, noise, clean), mask, alien, torch.arange(count))


def boxed(count=4, seed=1, boxes=3, valid=None):
    """Return a batch of two views and boxes of any regions."""
    numbers = torch.Generator().manual_seed(seed)
    views = torch.randn(count, 2, 3, SIDE, SIDE, generator=numbers)
    first = 4 * torch.rand(count, 2, boxes, 2, generator=numbers)
    sides = 2 + 2 * torch.rand(count, 2, boxes, 2, generator=numbers)
    valid = torch.ones(count, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return BoxesBatch(views, torch.cat([first, first + sides], 3), valid, torch.arange(count))
