"""A small task, network and batches, which the tests of all methods share."""

import torch
from torch import nn

from raykb.semi import METHODS
from raykb.semi.batch import SemiBatch, Task

CLASSES = 3
IDS = torch.tensor([5, 8, 13, 21, 34, 55, 89, 144])
TRUTHS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
OPTIONS = {"contrastive_regularization": {"projection": 4}}


def task(steps=20, truths=TRUTHS):
    return Task(CLASSES, steps, IDS, truths)


def method(name, **options):
    return METHODS[name](task(), **OPTIONS.get(name, {}) | options)


def classifier(seed=0):
    """Return a network without batch norm, dropout or anything that looks at other samples."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.Tanh(),
        nn.Linear(6, CLASSES),
    )


def network(objective, seed=0):
    return objective.network(classifier(seed), seed)


def batch(labelled=4, unlabelled=6, seed=1, views=1):
    """Return a batch whose unlabelled images come in an order of their own."""
    numbers = torch.Generator().manual_seed(seed)

    def images(count):
        return 2.0 * torch.randn(count, 1, 4, 4, generator=numbers)

    return SemiBatch(
        images(labelled),
        torch.arange(labelled) % CLASSES,
        images(unlabelled),
        images(views * unlabelled),
        IDS[torch.randperm(len(IDS), generator=numbers)[:unlabelled]],
    )


def share(whole, rank, size):
    """Return a rank's share of a batch."""
    parts = whole._replace(strong=torch.arange(len(whole.ids)))
    own = SemiBatch(*(part.chunk(size)[rank] for part in parts))
    strong = whole.strong.unflatten(0, (-1, len(whole.ids)))  # (views, N, C, H, W)
    return own._replace(strong=strong[:, own.strong].flatten(0, 1))


def logits(*rows):
    return torch.tensor([[float(value) for value in row] for row in rows])


WEAK = logits([4, 0, 0], [1, 0, 0], [0, 5, 1])
STRONG = logits([1, 0, 0], [0, 0, 0], [0, 1, 0])
