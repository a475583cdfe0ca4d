"""Hard inputs: images as a predictor of losses is to meet them, turned, dimmed and corrupted.

Kim, Kim, Kim, "Learning Loss for Test-Time Augmentation", NeurIPS 2020, arXiv 2010.11422, as its
official code has it: each of the four changes with probability q, then both mirror forms.

    rotation    -20, 0, 20 degrees             brightness   0.9, 1, 1.1
    zoom        0.9, 1, 1.1                    corruption   one of a list, severity 1..5

Departures: no random crop before it, which small images have no room for. The official code draws
corruptions from the fifteen that it is tested on; :data:`HARDENINGS` has that choice, and one
without the leak, which draws from the four that ImageNet-C keeps for validation.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raykb.data.candidates import mirrored, turned
from raykb.data.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, corrupted
from raykb.data.operations import apply_operation
from raykb.engine.arguments import Rule, at_least, misfits, refuse
from raykb.engine.seeding import keyed_uniform, stream_seed

_SHARE = Rule("in [0, 1]", lambda value: 0 <= value <= 1)
_CHANGES: tuple[tuple[Sequence[float], Callable[[Tensor, float], Tensor]], ...] = (
    ((-20.0, 0.0, 20.0), lambda images, value: turned(images, degrees=value)),
    ((0.9, 1.0, 1.1), lambda images, value: turned(images, zoom=value)),
    ((0.9, 1.0, 1.1), lambda images, value: apply_operation(images, "Brightness", value)),
)


@dataclass(frozen=True, kw_only=True)
class Hardening:
    """How inputs are made hard; a section of the config.

    Args:
        corruptions: names of those that are drawn from.
        probability: q of each of the four changes.
        versions: of each image, all of which there are mirrored, too.
    """

    corruptions: Sequence[str]
    probability: float = 0.4
    versions: int = 3

    def __post_init__(self) -> None:
        problems = misfits(self, probability=_SHARE, versions=at_least(1))
        known = (*CORRUPTIONS, *EXTRA)
        given = self.corruptions
        if isinstance(given, str) or not given or set(given) - {*known}:
            allowed = ", ".join(known)
            problems.append(f"corruptions: {given!r}, must be a list of some of {allowed}")
        refuse(problems)

    @property
    def samples(self) -> int:
        """Inputs that are made of each image."""
        return 2 * self.versions

    def __call__(self, images: Tensor, ids: np.ndarray, seed: int) -> Tensor:
        """Return hard inputs (N, samples, C, H, W) uint8 of images (N, C, H, W) uint8."""
        each = [self._version(images, ids, stream_seed(seed, n)) for n in range(self.versions)]
        return torch.stack([form for one in each for form in (one, mirrored(one))], dim=1)

    def _version(self, images: Tensor, ids: np.ndarray, seed: int) -> Tensor:
        out = images.clone()
        draws = keyed_uniform(stream_seed(seed, "hard"), ids, 9)  # (N, 9): whether and which
        for place, (values, change) in enumerate(_CHANGES):
            picked = (draws[:, 2 * place + 1] * len(values)).long()
            for number, value in enumerate(values):
                rows = (draws[:, 2 * place] < self.probability) & (picked == number)
                if rows.any():
                    out[rows] = change(out[rows], value)
        name = (draws[:, 7] * len(self.corruptions)).long()
        severity = (draws[:, 8] * len(SEVERITIES)).long()
        kind = torch.where(draws[:, 6] < self.probability, name * len(SEVERITIES) + severity, -1)
        for number in kind[kind >= 0].unique().tolist():
            which, strength = divmod(number, len(SEVERITIES))
            rows = kind == number
            corruption, own = self.corruptions[which], ids[rows.numpy()]
            out[rows] = corrupted(out[rows], corruption, SEVERITIES[strength], ids=own, seed=seed)
        return out


HARDENINGS: dict[str, Callable[..., Hardening]] = {
    "extra_four": functools.partial(Hardening, corruptions=tuple(EXTRA)),
    "same_fifteen": functools.partial(Hardening, corruptions=tuple(CORRUPTIONS)),
}
"""Without the leak, and as the official code has it."""
