"""Two random crops of each image, and where the same regions lie in both: views, boxes, valid, ids.

Its settings have the names that the objective gives them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raykb.data.crop_views import normalised
from raykb.data.crops import DRAWS, RandomCrops
from raykb.data.source import Fields
from raykb.data.views import ImageView, crop_boxes
from raykb.engine.seeding import keyed_uniform, stream_seed
from raykb.parts.matched_boxes import matched_boxes


@dataclass(frozen=True)
class BoxesView:
    """Two crops of each image, and boxes of the same regions in both.

    Attributes:
        crops: draws the crops.
        form: has mean and standard deviation; its augmentation is not used.
        count: boxes of each image; K.
        least: shortest side of a box in pixels of the coarser view.
        grid: whether boxes are drawn in the cells of a grid.
        overlap: greatest IoU of two boxes of an image, if it can be kept.
        jitter: greatest change of a box of the second view, as a share of its sides.
    """

    crops: RandomCrops
    form: ImageView
    count: int = 10
    least: int = 32
    grid: bool = True
    overlap: float = 0.5
    jitter: float = 0.0

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return views (n, 2, C, S, S) uint8, boxes (n, 2, K, 4), valid (n,) and ids (n,).

        Raises:
            ValueError: no box fits into a view.
        """
        images = arrays["images"]
        views = self.crops.views(images, ids, seed, epoch)

        def draw(name: str, rows: np.ndarray, count: int) -> np.ndarray:
            return keyed_uniform(stream_seed(seed, name, epoch), ids[rows], count).numpy()

        parts, mirrored = parts_seen(self.crops, images, ids, seed, epoch)
        boxes, valid = matched_boxes(
            parts,
            mirrored,
            views.shape[-1],
            draw,
            count=self.count,
            least=self.least,
            grid=self.grid,
            overlap=self.overlap,
            jitter=self.jitter,
        )
        there = {"boxes": boxes.to(images.device), "valid": valid.to(images.device)}
        return {"views": views, **there, "ids": torch.from_numpy(ids)}

    def finish(self, arrays: Fields) -> Fields:
        """Return the views as float32, boxes, valid and ids."""
        return arrays | {"views": normalised(self.form, arrays["views"])}

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images."""
        return arrays | {"images": self.form.plain(arrays["images"])}


def parts_seen(
    crops: RandomCrops, images: Tensor, ids: np.ndarray, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """Return of what parts of images two views are, (N, 2, 4), and which are mirrored, (N, 2).

    A part is its top, left, height and width in pixels, as ``crops.views`` draws it.
    """
    parts, mirrored = [], []
    for number in (0, 1):
        uniforms = keyed_uniform(stream_seed(seed, "crop", epoch, number), ids, DRAWS)
        height, width = images.shape[2:]
        parts.append(crop_boxes(uniforms[:, :4], height, width, crops.scale, crops.ratio))
        mirrored.append(uniforms[:, 4] < (0.5 if crops.flip else 0.0))
    return torch.stack(parts, 1), torch.stack(mirrored, 1)
