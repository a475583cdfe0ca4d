"""Views of sources of volumes: patches to train on, whole cases to test on.

PatchView    images, labels    patches, a share of them about foreground; then an augmentation
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raykb.data.nifti import Triple
from raykb.data.source import Fields
from raykb.data.volume_shards import StoredCase
from raykb.data.volumes import Volumes, crop, patch_start
from raykb.engine.arguments import Rule, misfits, refuse
from raykb.engine.seeding import keyed_uniform, stream_seed

_DRAWS = 6  # whether, of which label, at which voxel; and along Z, Y and X


class PatchAugmentation(Protocol):
    """What is done to patches on the training's device, by numbers that were drawn before."""

    @property
    def draws(self) -> int:
        """Uniform numbers for each patch."""

    @property
    def reach(self) -> Triple:
        """Z, Y and X of what it is given, about a patch: as much as is turned into it."""

    def __call__(self, images: Tensor, labels: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented patches.

        Args:
            images: (n, C, *reach) float32.
            labels: (n, *reach) int64.
            uniforms: (n, draws) float64 in [0, 1), on the same device.
        """


@dataclass(frozen=True, eq=False)
class PatchView:
    """Patches of labelled volumes.

    ``foreground_share`` of the patches have a voxel of the foreground in their middle: a label that
    the case has, each as likely, and a voxel of it. nnU-Net has the last third of each batch so;
    here each patch is drawn by itself, since a batch must not change what a case is given.

    Attributes:
        volumes: that handles stand for; a source may read a part of them.
        size: Z, Y and X of a patch; a volume that is smaller is filled up around.
        foreground_share: in [0, 1].
        fill: what lies outside an image; 0 suits one that was normalised, -1024 a CT in HU.
        augmentation: is given the patches on the training's device; None for none.
    """

    volumes: Volumes
    size: Triple
    foreground_share: float = 0.33
    fill: float = 0.0
    augmentation: PatchAugmentation | None = None

    def __post_init__(self) -> None:
        share = Rule("in 0..1", lambda value: 0 <= value <= 1)
        problems = misfits(self, foreground_share=share)
        if len(self.size) != 3 or min(self.size) < 1:
            problems.append(f"size: {self.size!r}, must be three positive numbers: Z, Y and X")
        if not _holds(self.volumes.dtype, self.fill):
            problems.append(
                f"fill: {self.fill!r}, must be a number of the volumes' type, {self.volumes.dtype}"
            )
        if any(border < 0 or border % 2 for border in self._beyond):
            problems.append(
                f"augmentation: has a reach of {self._reach}, must be larger than the size "
                f"{self.size} on both sides alike, or the same"
            )
        refuse(problems)

    @property
    def _reach(self) -> Triple:
        return self.size if self.augmentation is None else self.augmentation.reach

    @property
    def _beyond(self) -> list[int]:
        """Voxels of the reach that are not in the patch."""
        return [far - near for far, near in zip(self._reach, self.size, strict=False)]

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return images (n, C, Z, Y, X) of the volumes' type, labels (n, Z, Y, X) and draws.

        With an augmentation they are as large as its reach, about where the patch is.

        Raises:
            ValueError: the volumes have no labels.
        """
        if not self.volumes.labelled:
            raise ValueError("volumes: have no labels; patches are taken of the training part")
        where = keyed_uniform(stream_seed(seed, "patch", epoch), ids, _DRAWS).numpy()
        cases = [self.volumes.case(sample) for sample in arrays["cases"].tolist()]
        images = np.empty((len(ids), self.volumes.channels, *self._reach), self.volumes.dtype)
        labels = np.empty((len(ids), *self._reach), self.volumes.label_dtype)
        for case, uniforms, image, label in zip(cases, where, images, labels, strict=True):
            start = np.array(self._start(case, uniforms)) - np.array(self._beyond) // 2
            crop(case.image, start, image, fill=self.fill)
            crop(case.label, start, label)
        made = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}
        if self.augmentation is not None:
            stream = stream_seed(seed, "patch augmentation", epoch)
            made["draws"] = keyed_uniform(stream, ids, self.augmentation.draws)
        return made

    def _start(self, case: StoredCase, uniforms: np.ndarray) -> list[int]:
        """Return the first voxel of a patch of a case."""
        whether, which_label, which_voxel, *along = uniforms
        around = None
        if whether < self.foreground_share and case.positions:
            counts = list(case.positions.values())
            label = int(which_label * len(counts))
            around = case.foreground[sum(counts[:label]) + int(which_voxel * counts[label]), 1:]
        return patch_start(case.shape, self.size, np.array(along), around)

    def finish(self, arrays: Fields) -> Fields:
        """Return images (n, C, Z, Y, X) float32 and labels (n, Z, Y, X) int64, augmented."""
        images, labels = arrays["images"].float(), arrays["labels"].long()
        if self.augmentation is not None:
            images, labels = self.augmentation(images, labels, arrays["draws"])
        return {"images": images, "labels": labels}

    def plain(self, arrays: Fields) -> Fields:
        """Return whole volumes: images (n, C, Z, Y, X) float32 and, if any, labels int64.

        Raises:
            ValueError: they are of different shapes.
        """
        handles = arrays["cases"]
        cases = [self.volumes.case(sample) for sample in handles.tolist()]
        if len({case.shape for case in cases}) > 1:
            raise ValueError(
                f"cases: volumes of the shapes {[case.shape for case in cases]} are no batch; "
                "take one at a time, with a batch_size of 1"
            )
        whole = {"images": np.stack([case.image.astype(np.float32) for case in cases])}
        if self.volumes.labelled:
            whole["labels"] = np.stack([case.label.astype(np.int64) for case in cases])
        return {name: torch.from_numpy(a).to(handles.device) for name, a in whole.items()}


def _holds(kind: np.dtype, value: float) -> bool:
    """Return whether a number can be one of a type."""
    if kind.kind == "f":
        return True
    limits = np.iinfo(kind)
    return float(value).is_integer() and limits.min <= value <= limits.max
