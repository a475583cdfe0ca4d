"""A small task, network and batches, which the tests of all methods share."""

import torch
from torch import nn

from raykb.engine.assemble import filled
from raykb.engine.objective import Task
from raykb.engine.seeding import apart, stream_seed
from raykb.parts.backbone import LayeredClassifier
from raykb.semi import METHODS
from raykb.semi.batch import SemiBatch

CLASSES = 3
IDS = torch.tensor([5, 8, 13, 21, 34, 55, 89, 144])
TRUTHS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
OPTIONS = {"contrastive_regularization": {"projection": 4}}


def task(steps=20, truths=TRUTHS):
    return Task(classifier(), steps, CLASSES, IDS, truths)


def method(name, *, told=None, seed=0, **options):
    """Return a method; what it puts on the network is drawn as a training of ``seed`` does."""
    told = told or task()
    with apart(stream_seed(seed, "projection head")):
        return METHODS[name](told, **OPTIONS.get(name, {}) | options)


def classifier(seed=0):
    """Return a network without batch norm, dropout or anything that looks at other samples."""
    torch.manual_seed(seed)
    return LayeredClassifier(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.Tanh(),
        nn.Linear(6, CLASSES),
    )


def batch(labelled=4, unlabelled=6, seed=1, views=1):
    """Return a batch whose unlabelled images come in an order of their own."""
    numbers = torch.Generator().manual_seed(seed)

    def images(count):
        return 2.0 * torch.randn(count, 1, 4, 4, generator=numbers)

    return SemiBatch(
        images(labelled),
        torch.arange(labelled) % CLASSES,
        images(unlabelled),
        images(views * unlabelled).unflatten(0, (views, unlabelled)).transpose(0, 1),
        IDS[torch.randperm(len(IDS), generator=numbers)[:unlabelled]],
    )


def seen_by(objective, whole):
    """Return what a method looks at of a batch."""
    return filled(objective, whole._asdict())


def share(whole, rank, size):
    """Return a rank's share of a batch."""
    return SemiBatch(*(part.chunk(size)[rank] for part in whole))


def logits(*rows):
    return torch.tensor([[float(value) for value in row] for row in rows])


WEAK = logits([4, 0, 0], [1, 0, 0], [0, 5, 1])
STRONG = logits([1, 0, 0], [0, 0, 0], [0, 1, 0])
