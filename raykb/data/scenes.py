"""Scenes: images composed of others at known places; the truth of what finds regions and objects.

    object     an image of the set, resized by a drawn scale; the first one is the scene's own, so
               that scenes have as many of each class as images have, the others are drawn
    place      drawn on whole pixels of a canvas, and again while the box overlaps (IoU) one before
               too much; an object that finds none in 50 tries is not there, but for the first
    ground     black, or patches of another image, shuffled: texture without an object

A later object lies over an earlier one. What a scene is depends on (seed, id) alone, and so does
not change with the rows that are read together, or that a subset has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raykb.data.crops import resized_crops
from raykb.data.images import ImageSet
from raykb.data.source import Examples, Read, Selected
from raykb.engine.arguments import Rule, among, misfits, refuse
from raykb.engine.seeding import keyed_uniform, stream_seed
from raykb.later import Later

operations = Later("torchvision.ops")

TRIES = 50
PATCHES = 7  # of the ground, along an image's shorter side
NOTHING = -1  # label, and each border of a box, of an object that is not there

Background = Literal["constant", "texture"]


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How scenes are composed of images.

    Attributes:
        canvas: side of a scene, in longer sides of an image.
        objects: least and most of a scene; K is the most.
        scale: least and greatest share of an image's sides that an object has.
        overlap: greatest IoU of two boxes of a scene.
        background: what is seen where no object is.
    """

    canvas: float = 2.0
    objects: tuple[int, int] = (1, 3)
    scale: tuple[float, float] = (0.6, 1.0)
    overlap: float = 0.0
    background: Background = "texture"

    def __post_init__(self) -> None:
        within = f"(least, greatest) above 0, up to the canvas of {self.canvas:g}"
        refuse(
            misfits(
                self,
                objects=Rule("(least, most), from 1 on", lambda value: 1 <= value[0] <= value[1]),
                scale=Rule(within, lambda value: 0 < value[0] <= value[1] <= self.canvas),
                overlap=Rule("in 0..1", lambda value: 0 <= value <= 1),
                background=among("constant", "texture"),
            )
        )

    def size(self, sides: Sequence[int]) -> int:
        """Return the side of a scene in pixels, for images of such sides."""
        return round(self.canvas * max(sides))


@dataclass(frozen=True, eq=False)
class Scenes:
    """One scene for each image; :class:`raykb.data.source.Examples` of images, boxes and labels.

    Attributes:
        examples: the images, and their ``labels``.
        how: they are composed.
        seed: of all that is drawn.
    """

    examples: Examples
    how: Composition
    seed: int = 0

    @property
    def ids(self) -> np.ndarray:
        """Ids of the scenes, those of their first objects, (N,) int64."""
        return self.examples.ids

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, rows: np.ndarray) -> Read:
        """Return ``images`` (n, C, S, S) uint8, ``boxes`` (n, K, 4) and ``labels`` (n, K).

        Boxes are float32, of left, top, right and bottom in pixels. They and the labels are -1
        where an object is not there.
        """
        ids, most = self.ids[rows], self.how.objects[1]
        which = self._drawn_rows("objects", ids, most - 1)
        found = self.examples.read(np.concatenate([rows[:, None], which], 1).ravel())
        images = torch.from_numpy(found.arrays["images"]).unflatten(0, (len(rows), most))
        boxes, there = self._placed(ids, images.shape[3:])
        scenes = self._ground(ids, images[:, 0])
        for number in range(most):
            own = there[:, number]
            scenes[own] = pasted(scenes[own], images[own, number], boxes[own, number])
        labels = found.arrays["labels"].reshape(len(rows), most)
        arrays = {
            "images": scenes.numpy(),
            "boxes": boxes.numpy(),
            "labels": np.where(there.numpy(), labels, NOTHING),
        }
        problems = [found.problems[first : first + most] for first in range(0, labels.size, most)]
        return Read(arrays, ids, ["; ".join(filter(None, each)) for each in problems])

    def subset(self, rows: np.ndarray) -> Selected:
        """Return the scenes at ``rows``, as they are among all."""
        return Selected(self, rows)

    def _uniform(self, name: str, ids: np.ndarray, count: int) -> Tensor:
        return keyed_uniform(stream_seed(self.seed, "scenes", name), ids, count)

    def _drawn_rows(self, name: str, ids: np.ndarray, count: int) -> np.ndarray:
        """Return rows of images, (n, count)."""
        return (self._uniform(name, ids, count) * len(self)).long().numpy()

    def _placed(self, ids: np.ndarray, sides: torch.Size) -> tuple[Tensor, Tensor]:
        """Return boxes (n, K, 4) of objects of images of such sides, and which are there, (n, K).

        Each is the first of its tries that overlaps none before too much.
        """
        least, most = self.how.objects
        counts = least + (self._uniform("count", ids, 1) * (most - least + 1)).long()
        tries = self._tries(ids, sides)  # (n, K, tries, 4)
        boxes = tries.new_full((len(ids), most, 4), NOTHING)
        there = torch.arange(most) < counts  # (n, K)
        every = torch.arange(len(ids))
        for number in range(most):
            shared = operations.box_iou(tries[:, number], boxes[:, :number])  # (n, tries, number)
            free = (shared <= self.how.overlap).all(2)
            first = torch.from_numpy(free.numpy().argmax(1))  # numpy's is the first of equal ones
            there[:, number] &= free.any(1)
            own = there[:, number, None]
            boxes[:, number] = torch.where(own, tries[every, number, first], boxes[:, number])
        return boxes, there

    def _tries(self, ids: np.ndarray, sides: torch.Size) -> Tensor:
        """Return boxes (n, K, tries, 4) that are drawn without a look at each other."""
        most, size, (low, high) = self.how.objects[1], self.how.size(sides), self.how.scale
        numbers = self._uniform("places", ids, most * TRIES * 3)
        scale, *place = numbers.unflatten(1, (most, TRIES, 3)).unbind(3)
        scale = low + (high - low) * scale
        lengths = [(scale * side).round().clamp(min=1) for side in sides]
        starts = [
            (at * (size - length + 1)).floor() for at, length in zip(place, lengths, strict=True)
        ]
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        return torch.stack([starts[1], starts[0], ends[1], ends[0]], 3).float()

    def _ground(self, ids: np.ndarray, images: Tensor) -> Tensor:
        """Return scenes (n, C, S, S) without objects, for images (n, C, H, W)."""
        size = self.how.size(images.shape[2:])
        if self.how.background == "constant":
            return images.new_zeros(*images.shape[:2], size, size)
        others = self.examples.read(self._drawn_rows("ground", ids, 1)[:, 0]).arrays["images"]
        patch = max(1, min(images.shape[2:]) // PATCHES)
        count = math.ceil(size / patch) ** 2
        places = self._uniform("patches", ids, 2 * count).unflatten(1, (2, count))
        return shuffled(torch.from_numpy(others), places, patch)[..., :size, :size]


def as_scenes(images: ImageSet, how: Composition, seed: int = 0) -> ImageSet:
    """Return scenes in the place of images, each with the label of its first object."""
    found = Scenes(images, how, seed).read(np.arange(len(images))).arrays
    return ImageSet(
        found["images"], found["labels"][:, 0], images.ids, images.classes, images.skipped
    )


def pasted(scenes: Tensor, images: Tensor, boxes: Tensor) -> Tensor:
    """Return scenes that show an image each in a box, resized to fill it.

    Args:
        scenes: (N, C, S, S) uint8.
        images: (N, C, H, W) uint8.
        boxes: (N, 4) left, top, right and bottom in whole pixels of a scene.
    """
    size, sides = scenes.shape[3], torch.tensor(images.shape[2:])
    start, end = boxes[:, [1, 0]].double(), boxes[:, [3, 2]].double()  # (N, (y, x))
    share = sides / (end - start)  # pixels of the image for one of the scene
    whole = torch.cat([-start * share, size * share], 1)  # the scene, as a part of the image
    drawn = resized_crops(images, whole, torch.zeros(len(images), dtype=torch.bool), size)
    pixels = torch.arange(size)
    y, x = ((pixels >= start[..., None]) & (pixels < end[..., None])).unbind(1)  # (N, S) each
    inside = (y[:, :, None] & x[:, None])[:, None]  # (N, 1, S, S)
    return torch.where(inside, 255 * drawn, scenes).round().to(torch.uint8)


def shuffled(images: Tensor, places: Tensor, patch: int) -> Tensor:
    """Return squares of patches of each image, (N, C, S, S) with S = sqrt(T) patch, row by row.

    Args:
        images: (N, C, H, W).
        places: (N, 2, T) of y and x of patches in [0, 1); T is a square.
        patch: side of a patch in pixels.
    """
    height, width = images.shape[2:]
    room = torch.tensor([height - patch + 1, width - patch + 1])[:, None]
    within = torch.arange(patch)
    y, x = ((places * room).long()[..., None] + within).unbind(1)  # (N, T, patch) each
    index = (y[..., None] * width + x[:, :, None]).flatten(1)[:, None]  # (N, 1, T patch patch)
    found = images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1))
    grid = math.isqrt(places.shape[2])
    tiles: Tensor = found.unflatten(2, (grid, grid, patch, patch))
    return tiles.transpose(3, 4).reshape(*images.shape[:2], grid * patch, grid * patch)
