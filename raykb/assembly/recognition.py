"""Labelled images whose batches are mixed, and images of other kinds: what recognition reads."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from raykb.assembly.builder import Config, Data, network_of
from raykb.assembly.supervised import Supervised, classifier_data
from raykb.config import Problems, build
from raykb.data.feed import Unread
from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.loading import load
from raykb.data.views import VIEWS
from raykb.engine.assemble import filled
from raykb.engine.objective import Objective
from raykb.engine.seeding import generator
from raykb.evaluate.outliers import OutlierDetection
from raykb.evaluate.weak_localisation import WeakLocalisation
from raykb.parts.backbone import WithStages, require
from raykb.recognition import MIXINGS
from raykb.recognition.mixed_feed import MixedFeed, mixed_fields


@dataclass(frozen=True)
class Recognition:
    """Data that were opened; no image is decoded yet, but for one of each.

    Attributes:
        labelled: what is learnt and recognised.
        outside: a data set whose test images are of other kinds; None where there is none.
    """

    labelled: Supervised
    outside: Supervised | None

    @classmethod
    def opened(cls, config: Config, problems: Problems) -> "Recognition":
        """Open the data sets.

        Args:
            config: the section ``data``, and ``outside`` if there is one.
            problems: take what is wrong.

        Raises:
            ConfigError: something cannot be opened; all that is wrong is named.
        """
        found: dict[str, Supervised] = {}
        for section in ("data", "outside"):
            if section in config:
                with problems.at(section, config[section]):
                    found[section] = Supervised.opened(config[section])
        problems.refuse()
        labelled, outside = found["data"], found.get("outside")
        if outside is not None and outside.shape != labelled.shape:
            problems.add(
                f"outside: images have the shape {outside.shape}, those of the data set "
                f"{labelled.shape}; set image_size and channels of both, to the same"
            )
        return cls(labelled, outside)

    def check_mixed(self, objective: Objective, config: Config) -> None:
        """Raise ValueError unless an objective can learn from what the section ``mixing`` makes."""
        images, labels = torch.zeros(2, *self.labelled.shape), torch.zeros(2, dtype=torch.int64)
        drawn = build(MIXINGS, config["mixing"]).draw(images, generator(0))
        classes = len(self.labelled.train.classes)
        filled(objective, mixed_fields({"images": images, "labels": labels}, drawn, classes))

    def check_localised(self, config: Config) -> None:
        """Raise ValueError if boxes are asked for of a network that has no maps of stages."""
        if "weak_localisation" in config:
            with torch.device("meta"):
                network = network_of(config, self.labelled.stand_in)
            require(network, WithStages, "weak_localisation")

    def read(self) -> dict[str, ImageSet]:
        """Decode ``train``, ``test`` and, where there is one, ``outside``."""
        train, test = self.labelled.read()
        images = {"train": train, "test": test}
        if self.outside is not None:
            images["outside"] = load(self.outside.test, self.outside.options)
        return images


def recognition_data(
    *,
    config: Config,
    seed: int,
    outside: ImageSet | None = None,
    **given: Any,
) -> Data:
    """Return labelled images in shuffled epochs, whose batches are mixed.

    Args:
        config: the sections ``mixing``, ``weak_localisation`` if there is one, and those of
            :func:`classifier_data`.
        seed: of order, views and mixing.
        outside: images that the network should be less sure of; None for no such figure.
        given: what else :func:`classifier_data` takes.
    """
    data = classifier_data(config=config, seed=seed, **given)
    mixing = build(MIXINGS, config["mixing"])
    feed = MixedFeed(data.feed or Unread(), mixing, data.classes, seed)
    evaluations = dict(data.evaluations)
    if outside is not None:
        view = ClassifierView(build(VIEWS, config["view"]))
        evaluations["ood"] = OutlierDetection(given["test"], outside, view)
    if "weak_localisation" in config:
        protocol, view = build(WeakLocalisation, config["weak_localisation"]), config["view"]
        evaluations["weak_localisation"] = protocol.of(given["test"], view["mean"], view["std"])
    return dataclasses.replace(data, feed=feed, evaluations=evaluations)
