"""What recognition reads: labelled images whose batches are mixed, and images of other kinds.

With a section ``scenes`` each image is seen as a scene of one object at a known place, by trainings
and by tests; what is read and shared are the images.
"""

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
from raykb.data.scenes import Composition, Scenes, as_scenes
from raykb.data.views import VIEWS
from raykb.engine.assemble import filled
from raykb.engine.objective import Objective
from raykb.engine.seeding import generator
from raykb.evaluate.outliers import OutlierDetection
from raykb.evaluate.robustness import Robustness
from raykb.evaluate.weak_localisation import WeakLocalisation
from raykb.parts.backbone import WithStages, require
from raykb.recognition import MIXINGS
from raykb.recognition.mixed_feed import MixedFeed, mixed_fields

SEEN = ("train", "test")


def composition(config: Config) -> Composition | None:
    """Return how the scenes of a config are composed, of one object each; None without such."""
    if "scenes" not in config:
        return None
    found: Composition = build(Composition, config["scenes"], objects=(1, 1))
    return found


@dataclass(frozen=True)
class Recognition:
    """Data that were opened; no image is decoded yet, but for one of each.

    Attributes:
        labelled: what is learnt and recognised.
        outside: a data set whose test images are of other kinds; None where there is none.
        scenes: how they are composed that images are seen as; None for images as they are.
    """

    labelled: Supervised
    outside: Supervised | None
    scenes: Composition | None

    @classmethod
    def opened(cls, config: Config, problems: Problems) -> "Recognition":
        """Open the data sets.

        Args:
            config: the section ``data``, and ``outside`` and ``scenes`` if there are such.
            problems: take what is wrong.

        Raises:
            ConfigError: something cannot be opened; all that is wrong is named.
        """
        found: dict[str, Supervised] = {}
        for section in ("data", "outside"):
            if section in config:
                with problems.at(section, config[section]):
                    found[section] = Supervised.opened(config[section])
        with problems.at("scenes", config.get("scenes", {})):
            scenes = composition(config)
        if "weak_localisation" in config and "scenes" not in config:
            problems.add(
                "weak_localisation: images have no known boxes, must be scenes of one object; add "
                "the section scenes, or leave this one out"
            )
        problems.refuse()
        labelled, outside = found["data"], found.get("outside")
        if outside is not None and outside.shape != labelled.shape:
            problems.add(
                f"outside: images have the shape {outside.shape}, those of the data set "
                f"{labelled.shape}; set image_size and channels of both, to the same, or "
                "leave it out: outside=null"
            )
        return cls(labelled, outside, scenes)

    @property
    def stand_in(self) -> Data:
        """What a rehearsal has to know of it."""
        return self.labelled.stand_in

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what a network sees."""
        channels, *sides = self.labelled.shape
        side = [self.scenes.size(sides)] * 2 if self.scenes else sides
        return channels, side[0], side[1]

    def check_mixed(self, objective: Objective, config: Config) -> None:
        """Raise ValueError unless an objective can learn from what the section ``mixing`` makes."""
        images, labels = torch.zeros(2, *self.shape), torch.zeros(2, dtype=torch.int64)
        drawn = build(MIXINGS, config["mixing"]).draw(images, generator(0))
        classes = len(self.labelled.train.classes)
        filled(objective, mixed_fields({"images": images, "labels": labels}, drawn, classes))

    def check_localised(self, config: Config) -> None:
        """Raise ValueError if boxes are asked for of a network that has no maps of stages."""
        if "weak_localisation" in config:
            with torch.device("meta"):
                network = network_of(config, self.stand_in)
            require(network, WithStages, "weak_localisation")

    def seen(self, images: ImageSet) -> ImageSet:
        """Return images as a network sees them, before any view."""
        return images if self.scenes is None else as_scenes(images, self.scenes)

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
        config: the section ``mixing``, those of :func:`classifier_data`, and ``scenes``,
            ``corruption`` and ``weak_localisation`` if there are such.
        seed: of order, views and mixing.
        outside: images that the network should be less sure of; None for no such figure.
        given: what else :func:`classifier_data` takes.
    """
    how = composition(config)
    sets = given if how is None else given | {name: as_scenes(given[name], how) for name in SEEN}
    data = classifier_data(config=config, seed=seed, **sets)
    mixing = build(MIXINGS, config["mixing"])
    feed = MixedFeed(data.feed or Unread(), mixing, data.classes, seed)
    evaluations, view = dict(data.evaluations), ClassifierView(build(VIEWS, config["view"]))
    if outside is not None:
        others = outside if how is None else as_scenes(outside, how)
        evaluations["ood"] = OutlierDetection(sets["test"], others, view)
    if "corruption" in config:
        evaluations["corruption"] = build(Robustness, config["corruption"]).of(sets["test"], view)
    if "weak_localisation" in config and how is not None:
        protocol, form = build(WeakLocalisation, config["weak_localisation"]), config["view"]
        scenes = Scenes(given["test"], how)
        evaluations["weak_localisation"] = protocol.of(scenes, form["mean"], form["std"])
    return dataclasses.replace(data, feed=feed, evaluations=evaluations)
