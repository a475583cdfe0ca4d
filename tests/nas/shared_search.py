"""A search small enough for tests: four pairs of cells of width 1 or 2, in two dimensions."""

import torch
from torch.nn import functional as F

from raykb.engine.loop import Evaluated, Worker
from raykb.engine.objective import CrossEntropy, Task
from raykb.engine.optim import constant, sgd
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import generator
from raykb.nas.bilevel import SearchRecipe
from raykb.nas.genotype import SearchSpace
from raykb.nas.samplers import SAMPLERS
from raykb.nas.scnas import network
from raykb.nas.search import SearchFeeds, search_training
from raykb.nas.supernet import Architecture, ChosenNetwork

SPACE = SearchSpace()
SMALL = SearchSpace(("none", "identity", "conv_3"))
WITHOUT_NONE = SearchSpace(tuple(name for name in SPACE.operations if name != "none"))
STEPS_PER_EPOCH = 2


class Blobs:
    """A feed of images that are of a class where they are bright; its steps are remembered."""

    def __init__(self, name):
        self.name, self.seen = name, []

    def batches(self, start, worker, stop=None):
        for step in range(start, stop):
            self.seen.append(step)
            noise = torch.randn(2, 1, 4, 4, generator=generator(0, self.name, step))
            images = F.interpolate(noise, scale_factor=2)
            yield {"images": images, "labels": (images[:, 0] > 0).long()}

    def figures(self):
        return {}

    def close(self):
        self.seen.append("closed")


def accuracy(network, device):
    fields = next(Blobs("valid").batches(0, Worker(), 1))
    hits = network(fields["images"]).argmax(1) == fields["labels"]
    return Evaluated({"accuracy": float(hits.float().mean())}, {"voxels": hits.numel()})


def chosen(space=SPACE, layers=2, width=1, dims=2, bridge=True):
    torch.manual_seed(0)
    return ChosenNetwork(network(space, width, layers, 2, 1, bridge=bridge, dims=dims))


def a_search(name="two_path", *, space=SMALL, epochs=3, seed=0, feeds=True, **settings):
    """Return a search of six steps, of which two warm it up; and its architecture and feeds."""
    supernet, architecture = chosen(space, bridge=False), Architecture(space)
    steps = epochs * STEPS_PER_EPOCH
    recipe = Recipe(steps=steps, batch_size=2, save_every=0, log_every=2, evaluate_every=4)
    pair = SearchFeeds(Blobs("weights"), Blobs("architecture"))
    training = search_training(
        Worker(),
        network=supernet,
        objective=CrossEntropy(Task(supernet, steps=steps, classes=2)),
        architecture=architecture,
        sampler=SAMPLERS[name](space),
        space=space,
        feeds=pair if feeds else None,
        optimizer=lambda model: sgd(model, lr=0.05),
        schedule=constant(),
        recipe=recipe,
        lengths=recipe.lengths(2 * STEPS_PER_EPOCH),
        search=SearchRecipe(**({"warmup_epochs": 1, "alpha_lr": 0.1} | settings)),
        steps_per_epoch=STEPS_PER_EPOCH,
        evaluations={"": accuracy},
        seed=seed,
    )
    return training, architecture, pair
