"""Few labelled images beside a stream of unlabelled ones: what semi-supervised learning reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raykb.assembly.builder import Config, Data
from raykb.comparison import Comparison
from raykb.config import Problems, build
from raykb.config.schema import Table
from raykb.data.datasets import open_records
from raykb.data.feed import InPlace, Together
from raykb.data.image_views import WeakStrongView, WeakView
from raykb.data.images import ImageSet
from raykb.data.labels import Labels, from_json, true_labels
from raykb.data.loading import load
from raykb.data.options import Options
from raykb.data.order import Endless
from raykb.data.records import Records
from raykb.data.sharded_images import ShardedImages
from raykb.data.source import Source
from raykb.data.strong import PAIRS
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import VIEWS
from raykb.engine.loop import Feed
from raykb.engine.objective import Objective
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import stream_seed
from raykb.evaluate.classification import Classification

SAMPLE = "fashion_mnist_sample"  # the data set whose images a stream without paths has


@dataclass(frozen=True)
class SemiSupervised:
    """Data that were opened and labels that were drawn; no image is decoded yet, but for one.

    Attributes:
        train: records that labels are drawn from.
        test: records to evaluate on.
        options: how both are decoded.
        labels: how many are drawn.
        unlabelled: the settings of the stream.
        examples: its images.
        drawn: the labelled records of each seed; empty if they cannot be drawn.
    """

    train: Records
    test: Records
    options: Options
    labels: Labels
    unlabelled: UnlabelledImages
    examples: ShardedImages
    drawn: list[Records]

    @classmethod
    def opened(cls, config: Config, transports: Table, problems: Problems) -> "SemiSupervised":
        """Open data and stream, and draw the labels of each seed.

        Args:
            config: the sections ``data``, ``labels``, ``unlabelled``, ``pair``, ``view``,
                ``stream``, ``recipe`` and ``comparison``.
            transports: the table that ``stream`` is a row of.
            problems: take what is wrong.

        Raises:
            ConfigError: data or stream cannot be opened; all that is wrong is named.
        """
        unlabelled = build(UnlabelledImages, config["unlabelled"])
        if unlabelled.paths is None and (name := config["data"]["name"]) != SAMPLE:
            problems.add(
                "unlabelled.paths: names no shards; must name those of unlabelled images, unless "
                f"data.name is {SAMPLE} (it is {name}); pipelines/prepare_data.py makes them of "
                "any data set"
            )
        with problems.at("data", config["data"]):
            train, test, options = open_records(**config["data"])
        with problems.at("unlabelled", config["unlabelled"]):
            examples = unlabelled.examples(seed=0)
        problems.refuse()
        labels, drawn = build(Labels, config["labels"]), list[Records]()
        seeds = build(Comparison, config["comparison"]).seeds_of(config)
        with problems.at("labels", config["labels"]):
            drawn = [labels.draw(train, seed) for seed in seeds]
        found = cls(train, test, options, labels, unlabelled, examples, drawn)
        with problems.at("stream", config["stream"]):
            found._feed(config, 0, transports)
        return found

    @property
    def stand_in(self) -> Data:
        """What a rehearsal has to know of it."""
        return Data(
            samples=self.labels.count,
            classes=len(self.train.classes),
            channels=self.shape[0],
            ids=torch.arange(1),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images of the stream."""
        return self.examples.shape

    @property
    def record(self) -> dict[str, Any]:
        """What must be the same where a run goes on; else a step would see other images."""
        return {"schema": 1, "images": len(self.examples), "digest": self.examples.digest}

    def stream(
        self, config: Config, objective: Objective | None, seed: int, transports: Table, **how: Any
    ) -> Feed | None:
        """Return the unlabelled images that a training asks for; None if it asks for none.

        Args:
            config: the sections ``pair``, ``view``, ``stream`` and ``recipe``.
            objective: of the training, or one like it.
            seed: of the training.
            transports: the table that ``stream`` is a row of.
            how: what else a transport takes of the program.
        """
        if objective is None or "weak" not in objective.sees._fields:
            return None
        strong_views = getattr(objective, "strong_views", 1)
        return self._feed(config, seed, transports, strong_views=strong_views, **how)

    def _feed(
        self, config: Config, seed: int, transports: Table, *, strong_views: int = 1, **how: Any
    ) -> Feed:
        own, batch = stream_seed(seed, "unlabelled"), build(Recipe, config["recipe"]).batch_size
        pair = build(PAIRS, config["pair"], strong_views=strong_views)
        view = WeakStrongView(pair, build(VIEWS, config["view"]))
        source = self.unlabelled.source(self.examples.seeded(own), view, batch, own)
        feed: Feed = build(transports, config["stream"], source=source, **how)
        return feed

    def kept(self, text: str) -> list[Records]:
        """Return what was drawn for each seed when the run began, as its file has it.

        Raises:
            ValueError: the file is damaged, or not of these data or so many labels.
        """
        return from_json(text, self.train, [len(drawn) for drawn in self.drawn])

    def read(self, drawn: Sequence[Records]) -> tuple[list[ImageSet], ImageSet]:
        """Decode the labelled images of each seed, and the test images.

        Raises:
            ValueError: labelled, unlabelled and test images are not of one shape.
        """
        labelled = [load(records, self.options) for records in drawn]
        test = load(self.test, self.options)
        shape, streamed = test.images.shape[1:], self.examples.shape
        for part, found in (("labelled", labelled[0].images.shape[1:]), ("unlabelled", streamed)):
            if found != shape:
                raise ValueError(
                    f"{part} images have the shape {found}, test images {shape}; set image_size "
                    "and channels in 'data' and in 'unlabelled', to the same"
                )
        return labelled, test

    def truths(self, say: Callable[[str], None]) -> dict[int, int] | None:
        """Return the true labels of unlabelled images by id, for figures alone.

        ``say`` is told why there are none: files without labels, or with others than the data
        set's, or a file that cannot be read.
        """
        selected = self.options.classes is not None or self.options.num_classes is not None
        try:
            return true_labels(self.examples.files, self.train.classes, selected=selected)
        except (ValueError, OSError) as error:
            say(f"pseudo-labels cannot be held against true labels: {error}")
            return None

    def described(self, config: Config, labelled: ImageSet, test: ImageSet) -> str:
        """Return what is trained and tested on, in words; and that it is too short, if it is.

        Args:
            config: the section ``recipe``.
            labelled: images of a training, as :meth:`read` gave them.
            test: as :meth:`read` gave them.
        """
        recipe = build(Recipe, config["recipe"])
        steps, batch = recipe.lengths(len(labelled)).steps, recipe.batch_size
        told = (
            f"{len(labelled)} labelled, {len(self.examples):,} unlabelled, {len(test)} test images "
            f"of {len(test.classes)} classes; {steps} steps of {batch} + "
            f"{self.unlabelled.ratio * batch} images"
        )
        short = recipe.too_short(len(labelled))
        return f"{told}\nrecipe.{short}" if short else told


def semi_supervised_data(
    *,
    config: Config,
    seed: int,
    labelled: ImageSet,
    unlabelled: Feed | None,
    test: ImageSet,
    ids: np.ndarray,
    truths: Mapping[int, int] | None = None,
) -> Data:
    """Return few labelled images without an end, beside a stream of unlabelled ones.

    Args:
        config: the sections ``view``, ``pair`` and ``recipe``.
        seed: of order and views of the labelled ones.
        labelled: images to learn labels from.
        unlabelled: the stream of the others; None where nobody looks at them.
        test: images to evaluate on.
        ids: (U,) of all unlabelled images.
        truths: true labels of these by id, all of them, for figures alone; or None.

    Raises:
        ValueError: some unlabelled images have no true label among those given.
    """
    recipe, form = build(Recipe, config["recipe"]), build(VIEWS, config["view"])
    own = stream_seed(seed, "labelled")
    view = WeakView(build(PAIRS, config["pair"]), form)
    order = Endless(len(labelled), recipe.batch_size, own)
    first = InPlace(Source(labelled, order, view, own, "trainer"))
    ids, classes = np.sort(ids), len(labelled.classes)
    return Data(
        feed=first if unlabelled is None else Together(first, unlabelled),
        samples=len(labelled),
        classes=classes,
        channels=labelled.images.shape[1],
        evaluations={"": Classification(test, view, classes)},
        ids=torch.from_numpy(ids),
        truths=None if truths is None else _in_order(ids, truths),
    )


def _in_order(ids: np.ndarray, truths: Mapping[int, int]) -> Tensor:
    missing = [int(sample) for sample in ids if int(sample) not in truths]
    if missing:
        raise ValueError(
            f"truths: none for {len(missing)} of {len(ids)} unlabelled images, as {missing[0]}; "
            "give those of all, or None"
        )
    return torch.tensor([truths[int(sample)] for sample in ids])
