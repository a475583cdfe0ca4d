"""Augmentations of patches on the training's device, by name; a config's section ``augmentation``.

none      patches as they were cropped
nnunet    nnU-Net's: rotation, scaling, noise, blur, brightness, contrast, low resolution, gamma and
          mirroring, each with a probability of its own; at 0 it is left out and costs nothing
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raykb.data.keyed_numbers import keyed_uniforms
from raykb.data.nifti import Triple
from raykb.data.volume_operations import (
    blurred,
    brightened,
    coarsened,
    contrasted,
    gamma_corrected,
    mirrored,
    moved,
    noisy,
    rotations,
    spread,
)
from raykb.data.volume_shards import Spacing
from raykb.data.volume_views import PatchAugmentation
from raykb.engine.arguments import Rule, above, at_least, check_settings

_FLAT = 3.0  # a patch that is so many times longer than deep is of slices
_SMALLEST = 0.85  # scale that there is a border for; beyond it zeros are seen, as in nnU-Net
_PER_CHANNEL = 0.5  # of blur and low resolution, once a patch has them

Range = tuple[float, float]
Rows = Tensor | slice
Fields = tuple[Tensor, ...]
Change = Callable[[Tensor, Tensor], Tensor]
"""What becomes of images (N, C, Z, Y, X) by keys (N,)."""


@dataclass(frozen=True, kw_only=True)
class NNUNetAugmentation:
    """nnU-Net's augmentations, in its order and with its numbers.

    Patches of slices (longer than three times their depth) are rotated, scaled and coarsened
    within slices, by any angle. What a patch is given is a function of its own draws alone.

    Args:
        size: Z, Y and X of a patch.
        spacing_mm: of its voxels along these.
        rotation: probability; about all three axes at once.
        degrees: at most, either way; 180 in patches of slices.
        scaling: probability.
        scales: of what is seen, so that above 1 it is smaller.
        noise: probability.
        noise_variance: at most.
        blur: probability; then of each channel 1/2, as of low resolution.
        sigmas: in voxels.
        brightness: probability.
        brightness_factors: of each channel.
        contrast: probability.
        contrast_factors: of each channel.
        low_resolution: probability.
        resolutions: share of the voxels along an axis.
        inverted_gamma: probability, of the negative.
        gamma: probability.
        gammas: exponents of each channel.
        mirroring: probability along each of ``mirror_axes``.
        mirror_axes: of a patch, 0 its first; an axis whose ends have labels of their own, as front
            and back of the hippocampus, is learned more slowly with it.

    Raises:
        ValueError: arguments are out of their ranges; all are named.
    """

    size: Triple
    spacing_mm: Spacing
    rotation: float = 0.2
    degrees: float = 30.0
    scaling: float = 0.2
    scales: Range = (0.7, 1.4)
    noise: float = 0.1
    noise_variance: float = 0.1
    blur: float = 0.2
    sigmas: Range = (0.5, 1.0)
    brightness: float = 0.15
    brightness_factors: Range = (0.75, 1.25)
    contrast: float = 0.15
    contrast_factors: Range = (0.75, 1.25)
    low_resolution: float = 0.25
    resolutions: Range = (0.5, 1.0)
    inverted_gamma: float = 0.1
    gamma: float = 0.3
    gammas: Range = (0.7, 1.5)
    mirroring: float = 0.5
    mirror_axes: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        share = Rule("in 0..1", lambda value: 0 <= value <= 1)
        names = ["rotation", "scaling", "noise", "blur", "brightness", "contrast"]
        names += ["low_resolution", "inverted_gamma", "gamma", "mirroring"]
        span = Rule("two numbers above 0, the least first", lambda of: 0 < of[0] <= of[1])
        spans = ("scales", "sigmas", "brightness_factors", "contrast_factors", "gammas")
        part = Rule("two numbers in 0..1, the least first", lambda of: 0 < of[0] <= of[1] <= 1)
        rules = dict.fromkeys(names, share) | dict.fromkeys(spans, span) | {"resolutions": part}
        axes = Rule("of 0, 1 and 2", lambda axes: set(axes) <= {0, 1, 2})
        rules |= {"degrees": at_least(0), "noise_variance": above(0), "mirror_axes": axes}
        check_settings(self, **rules)

    @property
    def in_slices(self) -> bool:
        """Whether patches are of slices, between which nothing is mixed."""
        return max(self.size) > _FLAT * self.size[0]

    @property
    def draws(self) -> int:
        """Uniform numbers for each patch: whether, and a key, of ten augmentations."""
        return 20

    @functools.cached_property
    def reach(self) -> Triple:
        """Z, Y and X of what it wants to be given, so that a turned patch has its corners."""
        if not self.rotation and not self.scaling:
            return self.size
        most = torch.zeros(1, dtype=torch.float64)
        if self.rotation:
            most = torch.linspace(0, 180 if self.in_slices else self.degrees, 61).double()
        about = torch.eye(3, dtype=torch.float64)[: 1 if self.in_slices else 3]  # one at a time
        half = torch.tensor(self.size) * torch.tensor(self.spacing_mm).double() / 2
        turns = rotations((most[:, None, None] * about).view(-1, 3))
        extent = (turns.abs() @ half).amax(0) / half  # times as far
        times = (extent / _SMALLEST).tolist()
        z, y, x = (_widened(*axis) for axis in zip(self.size, times, strict=True))
        return (self.size[0] if self.in_slices else z), y, x

    def __call__(self, images: Tensor, labels: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented patches; see :class:`raykb.data.volume_views.PatchAugmentation`."""
        whether, keys = uniforms.unflatten(1, (-1, 2)).unbind(2)  # (N, 10) each
        images, labels = self._moved(images, labels, whether[:, :2], keys[:, 0])
        for number, (probability, change) in enumerate(self._intensities, 2):
            rows = whether[:, number] < probability
            if probability:
                (images,) = _changed((images,), rows, _of_rows(change, images, keys[:, number]))
        if self.mirroring:
            turned = keyed_uniforms(keys[:, 9], 3) < self.mirroring
            images, labels = mirrored(images, labels, turned, axes=self.mirror_axes)
        return images, labels

    def _moved(
        self, images: Tensor, labels: Tensor, whether: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return patches of the wanted size, some of them turned or scaled."""
        images_there, labels_there = _middle(images, self.size), _middle(labels, self.size)
        if not self.rotation and not self.scaling:
            return images_there, labels_there
        turned, scaled = whether[:, 0] < self.rotation, whether[:, 1] < self.scaling
        uniforms = keyed_uniforms(keys, 4)
        most = [180.0, 0.0, 0.0] if self.in_slices else [self.degrees] * 3
        angles = (uniforms[:, :3] * 2 - 1) * turned[:, None] * uniforms.new_tensor(most)
        scales = torch.where(scaled, _between(self.scales, uniforms[:, 3]), 1.0)
        matrices = rotations(angles) * scales[:, None, None]
        if self.in_slices:
            matrices = matrices[:, 1:, 1:]

        def seen(rows: Rows) -> tuple[Tensor, Tensor]:
            return moved(images[rows], labels[rows], matrices[rows], self.spacing_mm, self.size)

        images, labels = _changed((images_there, labels_there), turned | scaled, seen)
        return images, labels

    @property
    def _intensities(self) -> tuple[tuple[float, Change], ...]:
        """What is done to images alone, in nnU-Net's order, and how often."""
        return (
            (self.noise, self._noisy),
            (self.blur, self._blurred),
            (self.brightness, self._brightened),
            (self.contrast, self._contrasted),
            (self.low_resolution, self._coarsened),
            (self.inverted_gamma, functools.partial(self._gamma_corrected, inverted=True)),
            (self.gamma, functools.partial(self._gamma_corrected, inverted=False)),
        )

    def _noisy(self, images: Tensor, keys: Tensor) -> Tensor:
        variance = self.noise_variance * keyed_uniforms(keys, 1)[:, 0]
        return noisy(images, variance, (keys + 0.5) % 1)  # other numbers than the variance's

    def _blurred(self, images: Tensor, keys: Tensor) -> Tensor:
        chosen, sigma = _of_channels(images, keys, 2)
        made = blurred(images, _between(self.sigmas, sigma), widest=self.sigmas[1])
        return torch.where(spread(chosen < _PER_CHANNEL), made, images)

    def _brightened(self, images: Tensor, keys: Tensor) -> Tensor:
        (factor,) = _of_channels(images, keys, 1)
        return brightened(images, _about_one(self.brightness_factors, factor))

    def _contrasted(self, images: Tensor, keys: Tensor) -> Tensor:
        (factor,) = _of_channels(images, keys, 1)
        return contrasted(images, _about_one(self.contrast_factors, factor))

    def _coarsened(self, images: Tensor, keys: Tensor) -> Tensor:
        chosen, share = _of_channels(images, keys, 2)
        axes = (1, 2) if self.in_slices else (0, 1, 2)
        made = coarsened(images, _between(self.resolutions, share), axes=axes)
        return torch.where(spread(chosen < _PER_CHANNEL), made, images)

    def _gamma_corrected(self, images: Tensor, keys: Tensor, *, inverted: bool) -> Tensor:
        (gamma,) = _of_channels(images, keys, 1)
        return gamma_corrected(images, _about_one(self.gammas, gamma), inverted=inverted)


def unaugmented(*, size: Triple, spacing_mm: Spacing) -> None:
    """Patches as they were cropped."""


PATCH_AUGMENTATIONS: dict[str, Callable[..., PatchAugmentation | None]] = {
    "none": unaugmented,
    "nnunet": NNUNetAugmentation,
}
"""By name; all take ``size`` and ``spacing_mm`` of patches, and their own settings."""


def _changed(there: Fields, rows: Tensor, make: Callable[[Rows], Fields]) -> Fields:
    """Return tensors (N, …) whose ``rows`` (N,) are as ``make`` makes them.

    On the CPU no others are made. A device makes all, and keeps what is meant: to ask it which
    these are would wait for it.
    """
    if rows.device.type != "cpu":
        made = make(slice(None))
        pairs = zip(there, made, strict=True)
        return tuple(torch.where(rows.view(-1, *[1] * (t.dim() - 1)), m, t) for t, m in pairs)
    found = rows.nonzero()[:, 0]
    if not len(found):
        return there
    return tuple(t.index_copy(0, found, m) for t, m in zip(there, make(found), strict=True))


def _of_rows(change: Change, images: Tensor, keys: Tensor) -> Callable[[Rows], Fields]:
    return lambda rows: (change(images[rows], keys[rows]),)


def _of_channels(images: Tensor, keys: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return ``count`` tensors (N, C) of uniform numbers."""
    channels = images.shape[1]
    uniforms = keyed_uniforms(keys, count * channels).view(-1, count, channels)
    return uniforms.unbind(1)


def _between(span: Range, uniforms: Tensor) -> Tensor:
    return span[0] + (span[1] - span[0]) * uniforms


def _about_one(span: Range, uniforms: Tensor) -> Tensor:
    """Return numbers of a range, half of them on either side of 1 where it is within."""
    turn = min(max(1.0, span[0]), span[1])
    low, high = (2 * uniforms).clamp_max(1), (2 * uniforms - 1).clamp_min(0)
    return torch.where(
        uniforms < 0.5, _between((span[0], turn), low), _between((turn, span[1]), high)
    )


def _middle(of: Tensor, size: Triple) -> Tensor:
    """Return the box of a size in the middle of the last three axes."""
    for axis, (length, own) in enumerate(zip(of.shape[-3:], size, strict=True), of.dim() - 3):
        of = of.narrow(axis, (length - own) // 2, own)
    return of


def _widened(length: int, times: float) -> int:
    """Return a length times something, or a voxel more, so that the border is even."""
    return length + 2 * math.ceil(length * (times - 1) / 2 - 1e-9)
