"""Localisation: whether frozen maps say what an object is, and where.

Scenes have one image each on a ground without objects (raykb/data/scenes.py). Two linear layers at
every position of the maps are solved on some scenes of training images, and asked about others of
test images:

    class   W, b of the linear probe, over all positions; an object's class where the position lies
            in its box, else one more class for the ground
    box     min over V, a   1/(2n) sum_p |V z_p + a - t_p|^2 + lambda/2 |V|^2,   in closed form,
            t_p = (x - left, y - top, right - x, bottom - y),   over the n positions in a box

    found   at p* = argmax_p max_c softmax(W z_p + b)_c over the classes of objects: its class, and
            the box that V z_p* + a has about p*

Symbols:
    z_p      maps (D,) at position p, standardised over the positions of the training scenes
    x, y     middle of a position's cell; all lengths in sides of the scene

    iou          mean IoU of the box that is found with the true one
    top1_iou50   share of scenes whose class is right and whose IoU is at least 0.5: the
                 localisation accuracy of Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning deep
                 features for discriminative localization", CVPR 2016, arXiv 1512.04150

Both problems are convex and solved without a learning rate: networks are compared, not heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from raykb.data.feed import plain_batches
from raykb.data.image_views import ClassifierView
from raykb.data.scenes import Background, Composition, Scenes
from raykb.data.source import Examples
from raykb.data.views import CropFlipView
from raykb.engine.arguments import at_least, check_settings
from raykb.engine.loop import Evaluated
from raykb.engine.seeding import generator, stream_seed
from raykb.evaluate.backbone import Features, Judged
from raykb.evaluate.linear_probe import LinearProbe, Probe
from raykb.later import Later
from raykb.parts.backbone import WithMaps, require

operations = Later("torchvision.ops")

Split = Literal["train", "test"]

SHOWN = 8  # scenes of which it is kept what is found


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """Class and box of an object, read off frozen maps; a section of the config.

    Args:
        train_scenes: scenes that the heads are solved on; one a training image at most.
        test_scenes: scenes that they are asked about; one a test image at most.
        canvas: side of a scene, in longer sides of an image.
        scale: least and greatest share of an image's sides that an object has.
        background: what is seen where no object is.
        weight_decay: lambda, and that of the linear probe.
        iterations: of the linear probe's solver at most.
    """

    needs: ClassVar[type[Any]] = WithMaps
    task: ClassVar[str] = "localisation"
    compared: ClassVar[Sequence[str]] = ("top1_iou50", "iou")
    train_scenes: int = 1000
    test_scenes: int = 500
    canvas: float = 2.0
    scale: tuple[float, float] = (0.6, 1.0)
    background: Background = "texture"
    weight_decay: float = 1e-3
    iterations: int = 100

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("train_scenes", "test_scenes", "iterations"), at_least(1))
        check_settings(self, weight_decay=at_least(0), **counts)
        self.composition()  # refuses the rest

    def composition(self) -> Composition:
        """Return how scenes are composed."""
        return Composition(
            canvas=self.canvas, objects=(1, 1), scale=self.scale, background=self.background
        )

    def __call__(self, judged: Judged) -> Evaluated:
        """Return ``top1`` of the classes that are found, ``iou`` and ``top1_iou50``.

        The details have ``boxes``, in sides of a scene, and ``labels`` that are found in the first
        scenes, which :meth:`scenes` makes of test images and the ``seed``.
        """
        train = self.positions(judged, judged.by.train, "train")
        test = self.positions(judged, judged.by.test, "test")
        labels, boxes = self.fitted(train, judged.by.classes).found(test)
        right = labels == test.labels
        ious = operations.box_iou(boxes[:, None], test.boxes[:, None])[:, 0, 0]
        each = {"top1": right, "iou": ious, "top1_iou50": right & (ious >= 0.5)}
        figures = {name: float(values.double().mean()) for name, values in each.items()}
        shown = {"boxes": boxes[:SHOWN].tolist(), "labels": labels[:SHOWN].tolist()}
        return Evaluated(figures, {"seed": judged.by.seed} | shown)

    def scenes(self, examples: Examples, seed: int, split: Split) -> Examples:
        """Return scenes of drawn examples of a split, for the seed of :class:`JudgedBy`."""
        own = stream_seed(seed, "localisation", split)
        count = self.train_scenes if split == "train" else self.test_scenes
        rows = torch.randperm(len(examples), generator=generator(own, "rows"))[:count]
        return Scenes(examples, self.composition(), own).subset(rows.numpy())

    @torch.no_grad()
    def positions(self, judged: Judged, examples: Examples, split: Split) -> "Positions":
        """Return what the maps of the scenes of a split say."""
        backbone = require(judged.network, WithMaps, "localisation")
        form, found = judged.by.view.view, []
        whole = ClassifierView(CropFlipView(mean=form.mean, std=form.std))  # never cuts off borders
        batch = max(1, int(judged.by.batch_size / self.canvas**2))  # as many pixels as of images
        scenes = self.scenes(examples, judged.by.seed, split)
        for fields in plain_batches(scenes, whole, judged.device, batch_size=batch):
            maps = backbone.maps(fields["images"]).float()
            boxes = fields["boxes"][:, 0] / fields["images"].shape[3]
            found.append((maps, boxes, fields["labels"][:, 0]))
        maps, boxes, labels = map(torch.cat, zip(*found, strict=True))
        return Positions(maps.flatten(2).mT, middles(maps), boxes, labels)

    def fitted(self, train: "Positions", classes: int) -> "Heads":
        """Return the heads that are solved on scenes.

        Raises:
            ValueError: the maps are so coarse that no position lies in an object.
        """
        inside = train.inside
        labels = torch.where(inside, train.labels[:, None], classes)  # (N, P)
        solver = LinearProbe(weight_decay=self.weight_decay, iterations=self.iterations)
        probe = solver.fitted(Features(train.rows.flatten(0, 1), labels.flatten()), classes + 1)
        which, where = inside.nonzero(as_tuple=True)
        if not len(which):
            raise ValueError(
                f"localisation: of {len(train.middles)} positions of the maps none lies in an "
                "object; take a larger scale or canvas, or a network of a smaller stride"
            )
        at, boxes = train.middles[where], train.boxes[which]
        targets = torch.cat([at - boxes[:, :2], boxes[:, 2:] - at], 1)
        rows = (train.rows[which, where] - probe.mean) / probe.std
        return Heads(probe, *ridge(rows, targets, self.weight_decay))


class Positions(NamedTuple):
    """What maps say at each of P positions of N scenes, and what there is to find."""

    rows: Tensor  # (N, P, D)
    middles: Tensor  # (P, 2): x and y
    boxes: Tensor  # (N, 4): left, top, right, bottom
    labels: Tensor  # (N,)

    @property
    def inside(self) -> Tensor:
        """Whether a position lies in the object's box, (N, P)."""
        first, last = self.boxes[:, None].chunk(2, 2)  # (N, 1, 2) each
        return ((self.middles > first) & (self.middles < last)).all(2)


class Heads(NamedTuple):
    """Linear layers at each position, of standardised maps."""

    probe: Probe  # of classes, the ground the last one
    weight: Tensor  # V, (D, 4)
    bias: Tensor  # a, (4,)

    def found(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """Return the label (N,) and the box (N, 4) of the most certain position of each scene."""
        chances = self.probe.logits(positions.rows).softmax(2)[..., :-1]  # (N, P, C)
        best = chances.flatten(1).argmax(1)
        where, labels = best // chances.shape[2], best % chances.shape[2]
        rows = positions.rows[torch.arange(len(best), device=best.device), where]
        reach = (rows - self.probe.mean) / self.probe.std @ self.weight + self.bias  # (N, 4)
        before, after = reach.clamp(min=0).chunk(2, 1)
        at = positions.middles[where]
        return labels, torch.cat([at - before, at + after], 1).clamp(0, 1)


def middles(maps: Tensor) -> Tensor:
    """Return x and y of the middles of the cells of maps (N, D, h, w), (h w, 2), row by row."""
    y, x = ((torch.arange(side, device=maps.device) + 0.5) / side for side in maps.shape[2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), 2).flatten(0, 1)


def ridge(rows: Tensor, targets: Tensor, weight_decay: float) -> tuple[Tensor, Tensor]:
    """Return V (D, T) and a (T,) of least squares of rows (n, D) to targets (n, T), with a penalty.

    It is 1/(2n) sum |V x + a - t|^2 + weight_decay/2 |V|^2; a is free of it.
    """
    x, t = rows.double(), targets.double()
    mean, level = x.mean(0), t.mean(0)
    x, t = x - mean, t - level
    gram = x.T @ x / len(x) + weight_decay * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.pinv(gram, hermitian=True) @ (x.T @ t / len(x))  # some may never change
    return weight.to(rows), (level - mean @ weight).to(rows)
