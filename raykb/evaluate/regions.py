"""Agreement of regions: whether maps say the same of a region in two views, and not of others.

    r_vi       mean of the maps f(x_v) in box B_vi (RoI align), (D,)
    same       mean over images and i           of cos(r_1i, r_2i)
    different  mean over images and all (i, j)  of cos(r_1i, r_2j)   with IoU(B_1i, B_1j) <= apart
    agreement  same - different

Symbols:
    x_v        view v = 1, 2 of a scene of several objects (raykb/data/scenes.py): a crop of it,
               resized and mirrored, or not; colours stay, so that views differ in places alone
    B_vi       box i of K in view v, the same regions in both (raykb/parts/matched_boxes.py)
    f          network, to maps (D, h, w)

Each region of one view is compared with regions of the other, so that all that a pair of different
regions has less in common than one of the same is the place. It is 0 for maps that say one thing
everywhere, and for those that know the image and not its parts; what SCRL is to raise (Roh, Shin,
Kim, Kim, "Spatially Consistent Representation Learning", CVPR 2021, arXiv 2103.06122).

Golden: r_1 = (1, 0), (0, 1) and r_2 = (0.6, 0.8), (0, 1), both far apart. same = (0.6 + 1)/2 = 0.8,
different = (0 + 0.8)/2 = 0.4, agreement 0.4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.data.box_views import BoxesView
from raykb.data.crops import RandomCrops
from raykb.data.scenes import Background, Composition, Scenes
from raykb.engine.arguments import Rule, at_least, misfits, or_none, refuse, within
from raykb.engine.loop import Evaluated
from raykb.engine.seeding import generator, stream_seed
from raykb.evaluate.backbone import Judged
from raykb.later import Later
from raykb.parts.backbone import WithMaps, require
from raykb.parts.regions import regions

operations = Later("torchvision.ops")


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Agreement of regions across views; a section of the config.

    Args:
        scenes: their number; one a test image at most.
        count: K, boxes of a scene.
        least: shortest side of a box in pixels of the coarser view; null for a cell of the maps.
        apart: greatest IoU of two boxes that are different regions.
        crop: least and greatest share of the scene's area in a view.
        canvas: side of a scene, in longer sides of an image.
        objects: least and most of a scene.
        scale: least and greatest share of an image's sides that an object has.
        background: what is seen where no object is.
    """

    needs: ClassVar[type[Any]] = WithMaps
    task: ClassVar[str] = "regions"
    compared: ClassVar[Sequence[str]] = ("agreement",)
    scenes: int = 500
    count: int = 10
    least: int | None = None
    apart: float = 0.0
    crop: tuple[float, float] = (0.3, 1.0)
    canvas: float = 2.0
    objects: tuple[int, int] = (2, 3)
    scale: tuple[float, float] = (0.6, 1.0)
    background: Background = "texture"

    def __post_init__(self) -> None:
        share = Rule("(least, greatest) in (0, 1]", lambda value: 0 < value[0] <= value[1] <= 1)
        refuse(
            misfits(
                self,
                scenes=at_least(1),
                count=at_least(2),
                least=or_none(at_least(1)),
                apart=within(0, 1),
                crop=share,
            )
        )
        self.composition()  # refuses the rest

    def composition(self) -> Composition:
        """Return how scenes are composed."""
        return Composition(
            canvas=self.canvas, objects=self.objects, scale=self.scale, background=self.background
        )

    def __call__(self, judged: Judged) -> Evaluated:
        """Return ``same``, ``different`` and ``agreement``.

        Raises:
            ValueError: no image has two regions that are apart.
        """
        return Evaluated(agreement(*self.pooled(judged), self.apart))

    @torch.no_grad()
    def pooled(self, judged: Judged) -> tuple[Tensor, Tensor]:
        """Return r, (N, 2, K, D), of the scenes whose views have regions, and B_1, (N, K, 4)."""
        backbone = require(judged.network, WithMaps, "regions")
        seed, test = stream_seed(judged.by.seed, "regions"), judged.by.test
        rows = torch.randperm(len(test), generator=generator(seed, "rows"))[: self.scenes]
        scenes = Scenes(test, self.composition(), seed)
        view = self.view(judged, scenes)
        batch = max(1, int(judged.by.batch_size / self.canvas**2 / 2))  # pixels as of images
        found = []
        for part in rows.split(batch):
            arrays, ids, _ = scenes.read(part.numpy())
            images = torch.from_numpy(arrays["images"]).to(judged.device)
            seen = view.finish(view.train({"images": images}, ids, seed, 0))
            views, boxes, valid = seen["views"], seen["boxes"], seen["valid"]
            maps = backbone.maps(views.flatten(0, 1)).float()
            pooled = regions(maps, boxes.flatten(0, 1), views.shape[4], aligned=True)
            found.append((pooled.unflatten(0, views.shape[:2])[valid], boxes[valid, 0]))
        features, places = map(torch.cat, zip(*found, strict=True))
        return features, places

    def view(self, judged: Judged, scenes: Scenes) -> BoxesView:
        """Return what makes views and boxes of scenes."""
        backbone = require(judged.network, WithMaps, "regions")
        one = torch.from_numpy(scenes.read(np.arange(1)).arrays["images"]).to(judged.device)
        cell = math.ceil(one.shape[3] / backbone.maps(one.float()).shape[3])
        crops = RandomCrops(scale=self.crop, jitter=0.0, grey=0.0, blur=(0.0,))
        return BoxesView(crops, judged.by.view.view, count=self.count, least=self.least or cell)


def agreement(pooled: Tensor, boxes: Tensor, apart: float) -> dict[str, float]:
    """Return ``same``, ``different`` and ``agreement``.

    Args:
        pooled: r, (N, 2, K, D).
        boxes: B_1, (N, K, 4).
        apart: greatest IoU of two boxes that are different regions, below 1.

    Raises:
        ValueError: no image has two regions that are apart.
    """
    first, second = F.normalize(pooled, dim=3).unbind(1)  # (N, K, D) each
    cosines = (first @ second.mT).double()  # (N, K, K)
    far = operations.box_iou(boxes, boxes) <= apart  # of one with itself it is 1
    if not (pairs := int(far.sum())):
        raise ValueError(
            f"regions: of {len(boxes)} scenes none has two boxes with an IoU of at most {apart:g}; "
            "take a larger apart, crop or canvas, a smaller least, or a network of a smaller stride"
        )
    same = float(cosines.diagonal(dim1=1, dim2=2).mean())
    different = float((cosines * far).sum()) / pairs
    return {"same": same, "different": different, "agreement": same - different}
