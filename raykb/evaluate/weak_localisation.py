"""Weakly supervised localisation: where a classifier that was taught no boxes sees its class.

Scenes have one test image each on a ground without objects (raykb/data/scenes.py), as those have
that the network learnt from. A map of the class that the network says becomes a box:

    cam    C_ij = sum_c dlogit_k / dX_cij  X_cij     of the linear head, and of pooling's means its
                                                     weights: the class activation map of Zhou et
                                                     al., CVPR 2016, arXiv:1512.04150
    saol   C_ij = A_ij Y_kij                         of a spatial output layer, where there is one
    box    about the largest piece of where C, from 0 to 1 and as large as the scene, is at least
           ``threshold`` (0.2 there)

Symbols:
    X      last maps (D, h, w) of the network;  A, Y as in ``raykb/parts/spatial_output.py``
    k      the class that this head says

    top1         share of scenes whose class is right
    iou          mean IoU of the box with the true one
    top1_iou50   share of scenes whose class is right and whose IoU is at least 0.5
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.data.feed import plain_batches
from raykb.data.image_views import ClassifierView
from raykb.data.source import Examples
from raykb.data.views import CropFlipView
from raykb.engine.arguments import at_least, check_settings, within
from raykb.engine.loop import Evaluated, Evaluation
from raykb.engine.seeding import generator
from raykb.evaluate.components import largest_component
from raykb.later import Later
from raykb.parts.backbone import WithEvidence, WithStages, require
from raykb.parts.spatial_output import log_mixture

operations = Later("torchvision.ops")

SHOWN = 6  # scenes of which it is kept what is seen
SEED = 0  # all networks are asked about the same scenes


class Seen(NamedTuple):
    """What a head says of scenes: their classes, and where each is seen."""

    labels: Tensor  # (N,)
    maps: Tensor  # (N, h, w), C


@dataclass(frozen=True, kw_only=True)
class WeakLocalisation:
    """Boxes of class activation maps and of a spatial output layer; a section of the config.

    Args:
        scenes: how many; one a test image at most.
        threshold: from which share of a map's range on a place belongs to the object.
    """

    scenes: int = 200
    threshold: float = 0.2

    def __post_init__(self) -> None:
        check_settings(self, scenes=at_least(1), threshold=within(0, 1))

    def of(self, test: Examples, mean: Sequence[float], std: Sequence[float]) -> Evaluation:
        """Return the evaluation on some of the test scenes, which a mean and a std normalise.

        Args:
            test: scenes of one object, with ``boxes`` (N, 1, 4) and ``labels`` (N, 1).
            mean: of each channel.
            std: likewise.
        """
        view = ClassifierView(CropFlipView(mean=mean, std=std))  # cuts off no borders
        return functools.partial(self._evaluated, self.asked(test), view)

    def asked(self, test: Examples) -> Examples:
        """Return the scenes that networks are asked about, drawn of all."""
        rows = torch.randperm(len(test), generator=generator(SEED, "weak localisation"))
        return test.subset(rows[: self.scenes].numpy())

    def _evaluated(
        self, scenes: Examples, view: ClassifierView, network: nn.Module, device: torch.device
    ) -> Evaluated:
        """Return figures by head, as ``saol/iou``, and what is seen in the first scenes."""
        figures: dict[str, list[Tensor]] = {}
        details: dict[str, Any] = {}
        for fields in plain_batches(scenes, view, device, batch_size=100):
            side = fields["images"].shape[3]
            for name, seen in heads(network, fields["images"]).items():
                boxes = found_boxes(seen.maps, side, self.threshold).to(device)
                figures.setdefault(name, []).append(scored(seen.labels, boxes, fields))
                details.setdefault(name, _shown(seen, boxes))
        return Evaluated(_means(figures), details)


def heads(network: nn.Module, images: Tensor) -> dict[str, Seen]:
    """Return what each head of a network says of images (N, C, H, W).

    Raises:
        ValueError: the network has no maps of stages.
    """
    backbone = require(network, WithStages, "weak localisation")
    with torch.no_grad():
        maps = backbone.maps(images)
    found = {"cam": class_activation(backbone, maps)}
    if isinstance(network, WithEvidence):
        with torch.no_grad():
            attention, classes, *_ = network.evidence(images)
        labels = log_mixture(attention, classes).argmax(1)
        own = classes[torch.arange(len(labels), device=labels.device), labels]
        found["saol"] = Seen(labels, (attention[:, 0] + own).exp())
    return found


def class_activation(backbone: WithStages, maps: Tensor) -> Seen:
    """Return the class that the linear head says, and how much each place adds to its logit."""
    with torch.enable_grad():
        maps = maps.detach().requires_grad_()
        logits = backbone.classify(backbone.pooled(maps))
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), maps)
    return Seen(logits.argmax(1), (gradient * maps).sum(1).detach())


def found_boxes(maps: Tensor, side: int, threshold: float) -> Tensor:
    """Return a box (N, 4) in pixels about the largest piece of what maps (N, h, w) show.

    Args:
        maps: of any range.
        side: of a scene in pixels.
        threshold: share of the range from which on a place belongs to it.
    """
    large = F.interpolate(maps[:, None].float(), (side, side), mode="bilinear")[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    inside = large - low >= threshold * (high - low)
    return torch.tensor([_box(largest_component(each)) for each in inside.cpu().numpy()])


def _box(mask: np.ndarray) -> list[float]:
    """Return left, top, right and bottom of a mask that is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return [float(each) for each in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def scored(labels: Tensor, boxes: Tensor, truth: dict[str, Tensor]) -> Tensor:
    """Return ``top1``, ``iou`` and ``top1_iou50`` of each scene, (N, 3)."""
    ious = operations.box_iou(boxes[:, None], truth["boxes"])[:, 0, 0]
    right = (labels == truth["labels"][:, 0]).to(ious)
    return torch.stack([right, ious, right * (ious >= 0.5)], 1)


def _means(figures: dict[str, list[Tensor]]) -> dict[str, float]:
    names = ("top1", "iou", "top1_iou50")
    return {
        f"{head}/{name}": value
        for head, each in figures.items()
        for name, value in zip(names, torch.cat(each).double().mean(0).tolist(), strict=True)
    }


def _shown(seen: Seen, boxes: Tensor) -> dict[str, Any]:
    each = {"labels": seen.labels, "maps": seen.maps, "boxes": boxes}
    return {name: values[:SHOWN].tolist() for name, values in each.items()}
