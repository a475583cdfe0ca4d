"""Views of sources of images: the fields of a batch, and what is drawn for them by which name.

ClassifierView    images, labels      augmented, then cropped and normalised (VIEWS)
WeakView          images, labels      weak views (PAIRS), normalised
WeakStrongView    weak, strong, ids   of unlabelled images (PAIRS), normalised
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raykb.data.source import Fields
from raykb.data.strong import PairOfViews
from raykb.data.views import ImageView
from raykb.engine.seeding import keyed_uniform, stream_seed


class Augmentation(Protocol):
    """What comes before the view; a row of ``raykb.augment.augmentations`` is one."""

    def __call__(self, images: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        """Return augmented uint8 images (n, C, H, W); the input stays as it is."""


@dataclass(frozen=True)
class ClassifierView:
    """Augmented images and their labels.

    Attributes:
        view: crop, flip and normalisation.
        augmentation: comes before the view, on uint8; it has a seed of its own.
    """

    view: ImageView
    augmentation: Augmentation | None = None

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return images (n, C, H', W') float32 and labels (n,)."""
        images = arrays["images"]
        if self.augmentation is not None:
            images = self.augmentation(images, ids, epoch)
        uniforms = keyed_uniform(stream_seed(seed, "view", epoch), ids, self.view.draws)
        return arrays | {"images": self.view(images, uniforms)}

    def finish(self, arrays: Fields) -> Fields:
        """Return the arrays: the view has normalised them."""
        return arrays

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images and labels."""
        return arrays | {"images": self.view.plain(arrays["images"])}


@dataclass(frozen=True)
class WeakView:
    """Weak views of labelled images and their labels.

    Attributes:
        pair: makes the weak view.
        form: its plain form normalises; its augmentation is not used.
    """

    pair: PairOfViews
    form: ImageView

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return images (n, C, H, W) uint8 and labels (n,)."""
        return arrays | {"images": self.pair.weak(arrays["images"], ids, seed, epoch)}

    def finish(self, arrays: Fields) -> Fields:
        """Return images (n, C, H, W) float32 and labels (n,)."""
        return self.plain(arrays)

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images and labels."""
        return arrays | {"images": self.form.plain(arrays["images"])}


@dataclass(frozen=True)
class WeakStrongView:
    """Weak and strong views of unlabelled images.

    Attributes:
        pair: makes the views.
        form: its plain form normalises; its augmentation is not used.
    """

    pair: PairOfViews
    form: ImageView

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return weak (n, C, H, W) and strong views (n, S, C, H, W), uint8, and ids (n,)."""
        weak, strong = self.pair(arrays["images"], ids, seed, epoch)
        return {"weak": weak, "strong": strong, "ids": torch.from_numpy(ids)}

    def finish(self, arrays: Fields) -> Fields:
        """Return the views as float32, and ids."""
        strong = self.form.plain(arrays["strong"].flatten(0, 1))  # (n S, C, H', W')
        strong = strong.unflatten(0, arrays["strong"].shape[:2])
        return arrays | {"weak": self.form.plain(arrays["weak"]), "strong": strong}

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images."""
        return arrays | {"images": self.form.plain(arrays["images"])}
