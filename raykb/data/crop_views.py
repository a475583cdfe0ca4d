"""Views of sources of images that self-supervised learning sees.

CropsView       views, ids             several random crops (CROPS)
LabelledCropView  images, labels, ids  one of them, and its class
MultiCropView   views, local, ids      two of them, and small ones
TurnedView      images, labels, ids    turned by quarters of a circle, and by how many
TilesView       images, labels, ids    cut into tiles that were laid in another order, and in which

All are uint8 on their way and normalised at the end. Their settings have the names that the
objective gives them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raykb.data.crops import RandomCrops
from raykb.data.source import Fields
from raykb.data.views import ImageView, normalise
from raykb.engine.seeding import keyed_uniform, stream_seed


@dataclass(frozen=True)
class CropsView:
    """Random crops of each image.

    Attributes:
        crops: draws them.
        form: has mean and standard deviation; its augmentation is not used.
        count: of each image; V.
    """

    crops: RandomCrops
    form: ImageView
    count: int = 2

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return views (n, V, C, S, S) uint8 and ids (n,)."""
        views = self.crops.views(arrays["images"], ids, seed, epoch, self.count)
        return {"views": views, "ids": torch.from_numpy(ids)}

    def finish(self, arrays: Fields) -> Fields:
        """Return the views as float32, and ids."""
        return arrays | {"views": normalised(self.form, arrays["views"])}

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images."""
        return arrays | {"images": self.form.plain(arrays["images"])}


@dataclass(frozen=True)
class LabelledCropView:
    """A random crop of each image, and its class.

    Attributes:
        crops: draws them.
        form: has mean and standard deviation; its augmentation is not used.
    """

    crops: RandomCrops
    form: ImageView

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return images (n, C, S, S) uint8, labels (n,) and ids.

        Raises:
            ValueError: the images come without labels.
        """
        if "labels" not in arrays:
            raise ValueError("labels: unlabelled images have none; leave unlabelled.paths null")
        images = self.crops.views(arrays["images"], ids, seed, epoch, 1)[:, 0]
        return {"images": images, "labels": arrays["labels"], "ids": torch.from_numpy(ids)}

    def finish(self, arrays: Fields) -> Fields:
        """Return normalised images, labels and ids."""
        return self.plain(arrays)

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images."""
        return arrays | {"images": self.form.plain(arrays["images"])}


@dataclass(frozen=True)
class MultiCropView:
    """Two random crops of each image, and small ones.

    Attributes:
        crops: draws them.
        form: has mean and standard deviation; its augmentation is not used.
        local_views: small crops of each image; L.
    """

    crops: RandomCrops
    form: ImageView
    local_views: int

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return views (n, 2, C, S, S), local (n, L, C, s, s), uint8, and ids (n,)."""
        views = self.crops.views(arrays["images"], ids, seed, epoch)
        local = self.crops.local(arrays["images"], ids, seed, epoch, self.local_views)
        return {"views": views, "local": local, "ids": torch.from_numpy(ids)}

    def finish(self, arrays: Fields) -> Fields:
        """Return views and small crops as float32, and ids."""
        return arrays | {n: normalised(self.form, arrays[n]) for n in ("views", "local")}

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images."""
        return arrays | {"images": self.form.plain(arrays["images"])}


@dataclass(frozen=True)
class TurnedView:
    """Square images, each turned by a drawn number of quarters of a circle.

    Attributes:
        form: its plain form normalises; its augmentation is not used.
    """

    form: ImageView

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return images (n, C, S, S) uint8, turned anticlockwise by labels (n,) in 0..3, and ids.

        Raises:
            ValueError: the images are not square.
        """
        images = arrays["images"]
        if images.shape[2] != images.shape[3]:
            raise ValueError(
                f"images: of shape {tuple(images.shape)}; must be square to be turned; set "
                "image_size"
            )
        labels = _drawn(seed, "turn", epoch, ids, 4).to(images.device)
        each = torch.stack([images.rot90(number, (2, 3)) for number in range(4)])
        turned = each[labels, torch.arange(len(images), device=images.device)]
        return {"images": turned, "labels": labels, "ids": torch.from_numpy(ids)}

    def finish(self, arrays: Fields) -> Fields:
        """Return normalised images, labels and ids."""
        return self.plain(arrays)

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images."""
        return arrays | {"images": self.form.plain(arrays["images"])}


@dataclass(frozen=True, eq=False)
class TilesView:
    """Images cut into tiles, which were laid in another order.

    Attributes:
        form: its plain form normalises; its augmentation is not used.
        orders: (P, T): which tile lies at each place, row by row of a square grid.
    """

    form: ImageView
    orders: np.ndarray

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return images (n, C, H, W) uint8, laid by the orders of labels (n,), and ids.

        What is left over at the right and at the bottom is cut off.
        """
        images = arrays["images"]
        labels = _drawn(seed, "tiles", epoch, ids, len(self.orders)).to(images.device)
        orders = torch.from_numpy(self.orders).to(images.device)[labels]  # (n, T)
        grid = round(self.orders.shape[1] ** 0.5)
        height, width = (side // grid for side in images.shape[2:])
        cut = images[:, :, : grid * height, : grid * width]
        tiles = cut.unflatten(3, (grid, width)).unflatten(2, (grid, height))
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (n, T, C, h, w)
        laid = tiles[torch.arange(len(images), device=images.device)[:, None], orders]
        rows = laid.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5)
        return {"images": rows.reshape(cut.shape), "labels": labels, "ids": torch.from_numpy(ids)}

    def finish(self, arrays: Fields) -> Fields:
        """Return normalised images, labels and ids."""
        return self.plain(arrays)

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images."""
        return arrays | {"images": self.form.plain(arrays["images"])}


def normalised(form: ImageView, views: Tensor) -> Tensor:
    """Return views (n, V, C, S, S) uint8 as float32 with the mean and the deviation of ``form``."""
    return normalise(views.float().div_(255), form.mean, form.std)


def _drawn(seed: int, stream: str, epoch: int, ids: np.ndarray, count: int) -> Tensor:
    """Return a number below ``count`` for each id, (n,) int64."""
    uniform = keyed_uniform(stream_seed(seed, stream, epoch), ids, 1)[:, 0]
    return (uniform * count).long()
