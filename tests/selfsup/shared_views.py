"""A small network, task and batches, which the tests of all self-supervised methods share."""

import torch
from torch import nn

from raykb.engine.objective import Task
from raykb.engine.seeding import apart, stream_seed
from raykb.parts.backbone import LayeredClassifier
from raykb.selfsup import METHODS
from raykb.selfsup.batch import MultiCropBatch, ViewsBatch

CLASSES, WIDTH = 3, 6
SMALL = {  # settings that differ from the defaults, and cost little
    "dcl": {"projection": 4, "hidden": 5, "temperature": 0.2},
    "moco": {"projection": 4, "hidden": 5, "queue": 16, "momentum": 0.9, "temperature": 0.3},
    "nnclr": {"projection": 4, "hidden": 5, "predictor": 7, "queue": 16, "temperature": 0.2},
    "simsiam": {"projection": 8, "predictor": 3},
    "swav": {"projection": 4, "hidden": 5, "prototypes": 5, "local_views": 1},
    "barlow_twins": {"projection": 4, "hidden": 5, "redundancy_weight": 0.1},
    "vicreg": {"projection": 4, "hidden": 5},
    "dino": {"outputs": 7, "hidden": 5, "bottleneck": 4, "local_views": 1, "momentum": 0.9},
    "rotation": {},
    "jigsaw": {"grid": 2, "permutations": 6, "hidden": 5},
}


def network(seed=0):
    """Return a network without batch norm whose features alone are trained."""
    torch.manual_seed(seed)
    layers = LayeredClassifier(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, CLASSES),
    )
    layers[-1].requires_grad_(False)
    return layers


def method(name, *, steps=20, **options):
    """Return a small method; what it puts on the network is drawn as a training of seed 0 does."""
    with apart(stream_seed(0, "projection head")):
        return METHODS[name](Task(network(), steps), **SMALL[name] | options)


def batch(objective, images=6, seed=1):
    """Return what a method sees of some images."""
    numbers = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return 2.0 * torch.randn(images, *shape, generator=numbers)

    ids = torch.arange(images)
    if objective.sees is ViewsBatch:
        return ViewsBatch(draw(2, 1, 4, 4), ids)
    if objective.sees is MultiCropBatch:
        return MultiCropBatch(draw(2, 1, 4, 4), draw(objective.local_views, 1, 3, 3), ids)
    return objective.sees(draw(1, 4, 4), ids % 3, ids)


def share(whole, rank, size):
    """Return a rank's share of a batch."""
    return type(whole)(*(part.chunk(size)[rank] for part in whole))


def drawn(*shape, seed=0):
    """Return float64 numbers for a loss."""
    numbers = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(*shape, generator=numbers, dtype=torch.float64)
