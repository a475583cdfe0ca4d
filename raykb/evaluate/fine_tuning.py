"""Fine-tuning with few labels: what a backbone gives to who has a task and hardly any labels.

    order ──┬─ first   1 % ─ a copy of the network, trained ─▶ top1_1
            ├─ first  10 % ─ another copy, trained ──────────▶ top1_10
            └─ all 100 % ─── another copy, trained ──────────▶ top1_100

A copy under a new linear classifier is trained by cross entropy, from the same weights over the
same number of steps for each share. Its labels are the beginning of one order, in which classes
take turns: larger shares contain the smaller ones, and no class has fewer labels than another while
it has images.

The shares are those of Chen et al., "SimCLR", ICML 2020, arXiv 2002.05709, section 6; AdamW, a
cosine after a warm-up and rates that fall from layer to layer those of Bao et al., "BEiT", ICLR
2022, arXiv 2106.08254. Goldblum et al., "Battle of the Backbones", NeurIPS 2023, arXiv 2310.19909,
compare backbones so.

Departures: the augmentation is that of the view (a crop and a flip), without mixing, erasing or
smoothing; all shares have one recipe, which is not tuned to a backbone.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from raykb.data.feed import InPlace
from raykb.data.order import Endless
from raykb.data.source import Selected, Source
from raykb.engine.arguments import Rule, above, at_least, misfits, refuse
from raykb.engine.assemble import assemble
from raykb.engine.loop import Evaluated, Training, Worker, fit
from raykb.engine.objective import CrossEntropy, Task
from raykb.engine.optim import adamw, cosine
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import apart, keyed_uniform, stream_seed
from raykb.evaluate.backbone import Judged
from raykb.evaluate.classification import Classification
from raykb.parts.backbone import Backbone, freeze_classifier, require

_SHARE = Rule("above 0 and at most 1", lambda value: 0 < value <= 1)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """A copy that is trained with few labels; a section of the config.

    Args:
        shares: of the training images that have labels; of each class there is at least one.
        steps: of each training.
        batch_size: images of a step; some of them come again where there are fewer.
        lr: of the classifier.
        weight_decay: of AdamW.
        layer_decay: by what a layer's rate is that of the next.
        warmup: steps of a linear climb of the rates.
    """

    needs: ClassVar[type[Any]] = Backbone
    task: ClassVar[str] = "few labels"
    shares: Sequence[float] = (0.01, 0.1, 1.0)
    steps: int = 400
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    warmup: int = 40

    def __post_init__(self) -> None:
        several = Rule(
            "shares above 0 and at most 1, at least one, each once",
            lambda shares: len(shares) == len({*shares}) > 0 and all(map(_SHARE.holds, shares)),
        )
        problems = misfits(
            self,
            shares=several,
            steps=at_least(1),
            batch_size=at_least(1),
            lr=above(0),
            weight_decay=at_least(0),
            layer_decay=_SHARE,
        )
        refuse(problems)
        _ = self.recipe  # refuses a warm-up that does not end

    @property
    def compared(self) -> Sequence[str]:
        """Names of the figures, each with its share in percent: ``top1_10``."""
        return [f"top1_{100 * share:g}" for share in self.shares]

    @property
    def recipe(self) -> Recipe:
        """How each copy is trained."""
        return Recipe(
            steps=self.steps, batch_size=self.batch_size, warmup=self.warmup, save_every=0
        )

    def __call__(self, judged: Judged) -> Evaluated:
        """Return ``top1_<percent>`` for each share; the details have how many ``images`` it is."""
        labels = judged.train.labels.cpu().numpy()
        order, least = dealt(judged.by.train.ids, labels, judged.by.seed), len(np.unique(labels))
        figures, images = {}, {}
        for name, share in zip(self.compared, self.shares, strict=True):
            images[name] = max(round(share * len(order)), least)
            figures[name] = self.top1(judged, order[: images[name]])
        return Evaluated(figures, {"images": images})

    def top1(self, judged: Judged, rows: np.ndarray) -> float:
        """Return the share of test images that are recognised after training on ``rows``."""
        with apart(stream_seed(judged.by.seed, "fine-tuning")):  # the classifier, and dropout
            training = self.training(judged, rows)
            fit(training, log=lambda step, figures: None)
            return training.evaluate("test").figures["test/top1"]

    def training(self, judged: Judged, rows: np.ndarray) -> Training:
        """Return the training of a copy on the training images at ``rows``."""
        by, seed = judged.by, stream_seed(judged.by.seed, "labelled")
        network = FineTuned(judged.network, by.classes).train()
        order = Endless(len(rows), self.batch_size, seed)
        return assemble(
            Worker(device=judged.device),
            network=network,
            objective=CrossEntropy(Task(network, self.steps, by.classes)),
            feed=InPlace(Source(Selected(by.train, rows), order, by.view, seed, "trainer")),
            optimizer=functools.partial(
                adamw, lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay
            ),
            schedule=cosine(),
            recipe=self.recipe,
            lengths=self.recipe.lengths(len(rows)),
            evaluations={"": Classification(by.test, by.view, by.classes, by.batch_size)},
        )


class FineTuned(nn.Module):
    """A copy of a backbone under a linear classifier of its own, from images to logits (N, C).

    All of the copy that features depend on is trained, also what was kept from it until now: of an
    average of weights that is everything, and nothing tells the one from the other.

    Args:
        network: is copied.
        classes: C.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        backbone = require(network, Backbone, "fine-tuning")
        self.backbone: Any = copy.deepcopy(network).requires_grad_()
        freeze_classifier(self.backbone)  # nobody asks the one that it has
        self.head = nn.Sequential(nn.Linear(backbone.width, classes))  # a layer by itself

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C) of images."""
        logits: Tensor = self.head(self.backbone.features(images))
        return logits


def dealt(ids: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Return all positions (N,) in an order in which classes take turns.

    However many of its first ones are taken, the classes have the same number in them within one,
    but for those that have no more. The order within a class is keyed by the ids.

    Args:
        ids: (N,).
        labels: (N,) class numbers.
        seed: of the order within a class.
    """
    drawn = keyed_uniform(stream_seed(seed, "few labels"), ids, 1)[:, 0].numpy()
    by_class = np.lexsort((drawn, labels))  # class by class
    _, first, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    turns = np.arange(len(labels)) - np.repeat(first, counts)  # of its class come before
    order: np.ndarray = by_class[np.argsort(turns, kind="stable")]
    return order
