"""What a search is for: its architectures, trained anew, are better than those drawn at random.

Images of white noise, two classes: whether the mean of the 7 x 7 pixels around a pixel is above 0.
"""

import pytest
import torch
from torch.nn import functional as F

from raykb.engine.assemble import assemble
from raykb.engine.loop import Evaluated, Worker, fit
from raykb.engine.objective import CrossEntropy, Task
from raykb.engine.optim import cosine, sgd
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import generator
from raykb.nas.bilevel import SearchRecipe
from raykb.nas.genotype import CELLS, Genotype, SearchSpace, random_genotype
from raykb.nas.samplers import SAMPLERS
from raykb.nas.scnas import network
from raykb.nas.search import SearchFeeds, search_training
from raykb.nas.supernet import Architecture, ChosenNetwork

SIZES = {"width": 2, "layers": 2, "classes": 2, "channels": 1, "dims": 2}
SPACE = SearchSpace()


def images(name, number, count):
    noise = torch.randn(count, 1, 16, 16, generator=generator(0, name, number))
    return {"images": noise, "labels": (F.avg_pool2d(noise, 7, 1, 3) > 0).long()[:, 0]}


class Noise:
    """Batches of 8 images; after ``batches_in_all`` they come again."""

    def __init__(self, name, batches_in_all):
        self.name, self.batches_in_all = name, batches_in_all

    def batches(self, start, worker, stop=None):
        for step in range(start, stop):
            yield images(self.name, step % self.batches_in_all, 8)

    def figures(self):
        return {}

    def close(self):
        return


def loss_on(name):
    def evaluation(found, device):
        fields = images(name, 0, 64)
        with torch.no_grad():
            loss = F.cross_entropy(found(fields["images"]), fields["labels"])
        return Evaluated({"loss": float(loss)})

    return evaluation


def shared(steps, found):
    recipe = Recipe(steps=steps, batch_size=8, save_every=0)
    return {
        "network": found,
        "objective": CrossEntropy(Task(found, steps=steps, classes=2)),
        "optimizer": lambda model: sgd(model, lr=0.1),
        "schedule": cosine(),
        "recipe": recipe,
        "lengths": recipe.lengths(0),
    }


def retrained(genotype):
    """Return the loss on images of the test after 40 steps."""
    torch.manual_seed(0)
    training = assemble(
        Worker(),
        **shared(40, network(genotype, **SIZES)),
        feed=Noise("train", 64),
        evaluations={"": loss_on("test")},
    )
    fit(training, log=lambda *_: None)
    return training.evaluate("test").figures["test/loss"]


def searched(name, seed):
    """Return the genotype after 150 steps, 30 of them warm-up."""
    torch.manual_seed(seed)
    training = search_training(
        Worker(),
        **shared(150, ChosenNetwork(network(SPACE, **SIZES))),
        architecture=Architecture(SPACE),
        sampler=SAMPLERS[name](SPACE),
        space=SPACE,
        feeds=SearchFeeds(Noise("train", 32), Noise("other half", 32)),
        search=SearchRecipe(warmup_epochs=2, alpha_lr=0.05),
        steps_per_epoch=15,
        evaluations={},
        seed=seed,
    )
    fit(training, log=lambda *_: None)
    return Genotype(**training.evaluate("test").details["genotype"]["cells"])


@pytest.mark.slow
def test_each_search_beats_three_quarters_of_random_genotypes():
    """Three searches, which would all do so by chance once in 64 times."""
    numbers = torch.Generator().manual_seed(0)
    sizes = dict.fromkeys(CELLS, 8)  # the largest there are
    random = [retrained(random_genotype(SPACE, sizes, numbers)) for _ in range(12)]
    found = [retrained(searched("two_path", seed)) for seed in range(3)]
    assert max(found) < sorted(random)[len(random) // 4]
