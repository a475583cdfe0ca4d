"""A small network with patches, and batches for methods that fill in."""

import torch

from raykb.engine.objective import Task
from raykb.models.vit import VisionTransformer
from raykb.parts.patches import hidden_count
from raykb.selfsup.batch import CorruptedBatch, MaskedBatch

PATCH, SIDE = 2, 8


def transformer(seed=0, channels=3, **options):
    """Return a transformer without drop path, whose classifier is not trained."""
    torch.manual_seed(seed)
    settings = {"image_size": SIDE, "patch": PATCH, "width": 8, "depth": 2, "heads": 2} | options
    network = VisionTransformer(3, channels, **settings)
    network.heads.requires_grad_(False)
    return network


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
