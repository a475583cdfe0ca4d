"""What final trainings compare: one table of augmentations, from none to the searched policy.

Each entry builds a callable with one contract: uint8 images (N, C, H, W), their ids and the epoch
go in, uint8 images come out. What a sample is given is a function of (seed, epoch, sample id)
alone, whatever batch or worker it is in. Crop, flip and normalisation come afterwards, in the view
(:class:`raykb.data.views.CropFlipView`), and so does the default Cutout: ``augmentation.cutout``
says whether the view is to have it. As in Fast AutoAugment (arXiv:1905.00397, tables 2 to 4) every
augmentation but ``none`` is trained with it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raykb.augment.policy import Policy
from raykb.engine.foreign import read_text
from raykb.engine.seeding import keyed_uniform, stream_seed
from raykb.later import Later

v2 = Later("torchvision.transforms.v2")


class Augmentation(Protocol):
    """The contract; implementations are picklable, for they travel to workers."""

    @property
    def cutout(self) -> bool:
        """Whether the default Cutout of the view goes with it."""

    def __call__(self, images: Tensor, ids: np.ndarray | Tensor, epoch: int) -> Tensor:
        """Return augmented uint8 images (N, C, H, W); the input stays as it is."""


@dataclass(frozen=True)
class Unchanged:
    """Leaves images as they are."""

    cutout: bool

    def __call__(self, images: Tensor, ids: np.ndarray | Tensor, epoch: int) -> Tensor:
        """Return ``images``."""
        return images


@dataclass(frozen=True)
class FromPolicy:
    """Gives each image a sub-policy of its own."""

    policy: Policy
    seed: int = 0
    cutout: bool = True

    def __call__(self, images: Tensor, ids: np.ndarray | Tensor, epoch: int) -> Tensor:
        """Return the images after the policy."""
        stream = stream_seed(self.seed, "augment", epoch)
        uniforms = keyed_uniform(stream, ids, self.policy.draws)
        return self.policy.apply(images, draws=self.policy.draw(uniforms))


@dataclass(frozen=True)
class PerImage:
    """Applies a torchvision transform image by image.

    torchvision draws once for a whole batch and from the global generator; here each image has a
    call of its own, with the generator set to the image's own state and put back afterwards.
    """

    transform: Callable[[Tensor], Tensor]
    seed: int = 0
    cutout: bool = True

    def __call__(self, images: Tensor, ids: np.ndarray | Tensor, epoch: int) -> Tensor:
        """Return the images, each after its own draw of the transform."""
        stream = stream_seed(self.seed, "augment", epoch)
        keys = (keyed_uniform(stream, ids, 1) * 2.0**53).long().flatten().tolist()
        out = torch.empty_like(images)
        with torch.random.fork_rng(devices=[]):
            for place, image, key in zip(out, images, keys, strict=True):
                torch.default_generator.manual_seed(key)  # the CPU's alone, unlike manual_seed()
                place.copy_(self.transform(image))
        return out


def none(seed: int = 0) -> Augmentation:
    """Crop and flip alone; every entry takes a seed, this one has no use for it."""
    return Unchanged(cutout=False)


def cutout(seed: int = 0) -> Augmentation:
    """Crop, flip and the default Cutout, which are the view's: no use for the seed either."""
    return Unchanged(cutout=True)


def trivial_augment_wide(seed: int = 0, num_magnitude_bins: int = 31) -> Augmentation:
    """One random operation at a random strength (Müller and Hutter, arXiv:2103.10158)."""
    return PerImage(v2.TrivialAugmentWide(num_magnitude_bins=num_magnitude_bins), seed)


def rand_augment(seed: int = 0, num_ops: int = 2, magnitude: int = 9) -> Augmentation:
    """``num_ops`` random operations at one strength (Cubuk et al., arXiv:1909.13719)."""
    return PerImage(v2.RandAugment(num_ops=num_ops, magnitude=magnitude), seed)


def random_policy(
    seed: int = 0,
    searched: Policy | None = None,
    *,
    num_sub_policies: int | None = None,
    num_operations: int | None = None,
) -> Augmentation:
    """A policy drawn from the search space: the control that a searched one has to beat.

    Args:
        seed: of the draw.
        searched: what it is a control for.
        num_sub_policies: null for as many as the searched one has, or 25.
        num_operations: of each; null for as many as the searched one has, or 2.
    """
    count, depth = (25, 2) if searched is None else (len(searched), searched.depth)
    drawn = Policy.random(num_sub_policies or count, num_operations or depth, seed)
    return FromPolicy(drawn, seed)


def searched_policy(seed: int = 0, searched: Policy | None = None) -> Augmentation:
    """The policy that the run has found."""
    if searched is None:
        raise ValueError("searched_policy: there is none before the search; give 'policy' a file")
    return FromPolicy(searched, seed)


def policy(policy: Policy | str | Path, seed: int = 0) -> Augmentation:
    """A given policy, or the file that :meth:`Policy.to_json` was written to."""
    if not isinstance(policy, Policy):
        policy = Policy.from_json(read_text(Path(policy)))
    return FromPolicy(policy, seed)


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "none": none,
    "cutout": cutout,
    "trivial_augment_wide": trivial_augment_wide,
    "rand_augment": rand_augment,
    "random_policy": random_policy,
    "policy": policy,
    "searched_policy": searched_policy,
}
RIVALS: dict[str, dict[str, Any]] = {
    name: {"name": name}
    for name in ("none", "cutout", "trivial_augment_wide", "rand_augment", "random_policy")
}
"""What a searched policy has to beat, as sections of the config."""


def view_after(given: Augmentation, view: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section of the view that comes after an augmentation: with Cutout or without."""
    without = {"cutout": 0} if "cutout" in view and not given.cutout else {}
    return {**view, **without}


def augmentation(
    section: Mapping[str, Any], *, seed: int, searched: Policy | None = None
) -> Augmentation:
    """Return what a section of the config describes: a row of the table, and its arguments.

    Args:
        section: ``name`` and arguments.
        seed: of the augmentation.
        searched: the policy that was found, for the rows that are about it.
    """
    row = dict(section)
    made = AUGMENTATIONS[row.pop("name")]
    about = {"searched": searched} if "searched" in inspect.signature(made).parameters else {}
    return made(seed=seed, **about, **row)
