"""A sequential network, and labelled images in shuffled epochs: what a pipeline is made of."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raykb.assembly.builder import Config
from raykb.config import Problems, build
from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.data.views import VIEWS
from raykb.engine.objective import OBJECTIVES, Objective, Task
from raykb.engine.optim import OPTIMIZERS
from raykb.engine.recipe import Recipe
from raykb.models import SEQUENTIALS


@dataclass(frozen=True)
class Pipelined:
    """What was opened for a training in stages.

    Attributes:
        config: the sections ``view``, ``model``, ``optimizer`` and ``method``.
        train: images to train on.
        test: images to evaluate on.
        recipe: how to train.
    """

    config: Config
    train: ImageSet
    test: ImageSet
    recipe: Recipe

    @classmethod
    def opened(cls, config: Config, problems: Problems) -> "Pipelined":
        """Read the images of the section ``data``.

        Args:
            config: also the section ``recipe``.
            problems: take what is wrong.

        Raises:
            ConfigError: they cannot be read; all that is wrong is named.
        """
        with problems.at("data", config["data"]):
            train, test = build(DATASETS, config["data"])
        problems.refuse()
        return cls(config, train, test, build(Recipe, config["recipe"]))

    def check(self, problems: Problems) -> None:
        """Find what is wrong with optimizer and method."""
        with problems.at("optimizer", self.config["optimizer"]):
            build(OPTIMIZERS, self.config["optimizer"], model=nn.Linear(1, 1))
            if (decay := self.config["optimizer"].get("layer_decay", 1.0)) != 1.0:
                raise ValueError(
                    f"layer_decay: {decay}, must be 1: a stage counts its own layers only"
                )
        with problems.at("method", self.config["method"]):
            self.objective()

    @property
    def network(self) -> Callable[[], nn.Sequential]:
        """What builds the model, the same in every process."""
        sizes = {"classes": len(self.train.classes), "channels": self.train.images.shape[1]}
        return functools.partial(build, SEQUENTIALS, self.config["model"], **sizes)

    def objective(self) -> Objective:
        """Return what gives the terms of outputs and targets."""
        steps = self.recipe.lengths(len(self.train)).steps
        task = Task(nn.Identity(), steps, len(self.train.classes))
        objective: Objective = build(OBJECTIVES, self.config["method"], task=task)
        return objective

    def micro_batch(self, pieces: int) -> Tensor:
        """Return the largest of so many pieces of a batch, (n, C, H, W), without memory."""
        image = build(VIEWS, self.config["view"]).plain(torch.from_numpy(self.train.images[:1]))
        rows = max(1, -(-self.recipe.batch_size // pieces))
        return torch.zeros((rows, *image.shape[1:]), device="meta")
