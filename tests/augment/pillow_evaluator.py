"""A plain evaluator as the official code's: Pillow, one image at a time, a loader for each copy.

The reference of tests/augment/test_fast_autoaugment.py and the rival of
tests/benchmarks/bench_policy_evaluation.py. It follows the method (policy, crop, flip, tensor,
normalise, Cutout; R loaders with workers of their own, started anew for each candidate) and is
kinder than the official code in two ways: it keeps theta, and it keeps no graph for a gradient.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

Pillow = Image.Image


def affine(image: Pillow, *matrix: float) -> Pillow:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def cutout(image: Pillow, v: float) -> Pillow:
    if v <= 0:
        return image
    image, side = image.copy(), v * image.width
    left = int(max(0, random.random() * image.width - side / 2))
    top = int(max(0, random.random() * image.height - side / 2))
    box = (left, top, min(image.width, left + side), min(image.height, top + side))
    ImageDraw.Draw(image).rectangle(box, (125, 123, 114))
    return image


# name: (low, high, mirrored, effect)
OPERATIONS: dict[str, tuple[float, float, bool, Callable[[Pillow, float], Pillow]]] = {
    "ShearX": (-0.3, 0.3, True, lambda image, v: affine(image, 1, v, 0, 0, 1, 0)),
    "ShearY": (-0.3, 0.3, True, lambda image, v: affine(image, 1, 0, 0, v, 1, 0)),
    "TranslateX": (-0.45, 0.45, True, lambda im, v: affine(im, 1, 0, v * im.width, 0, 1, 0)),
    "TranslateY": (-0.45, 0.45, True, lambda im, v: affine(im, 1, 0, 0, 0, 1, v * im.height)),
    "Rotate": (-30, 30, True, lambda image, v: image.rotate(v)),
    "AutoContrast": (0, 1, False, lambda image, _: ImageOps.autocontrast(image)),
    "Invert": (0, 1, False, lambda image, _: ImageOps.invert(image)),
    "Equalize": (0, 1, False, lambda image, _: ImageOps.equalize(image)),
    "Solarize": (0, 256, False, lambda image, v: ImageOps.solarize(image, v)),
    "Posterize": (4, 8, False, lambda image, v: ImageOps.posterize(image, int(v))),
    "Contrast": (0.1, 1.9, False, lambda image, v: ImageEnhance.Contrast(image).enhance(v)),
    "Color": (0.1, 1.9, False, lambda image, v: ImageEnhance.Color(image).enhance(v)),
    "Brightness": (0.1, 1.9, False, lambda image, v: ImageEnhance.Brightness(image).enhance(v)),
    "Sharpness": (0.1, 1.9, False, lambda image, v: ImageEnhance.Sharpness(image).enhance(v)),
    "Cutout": (0, 0.2, False, cutout),
}


class PillowImages(Dataset[tuple[Tensor, int]]):
    """Images (N, H, W, 3) that are given a sub-policy and the default augmentation when read."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        sub_policies: Sequence[Sequence[tuple[str, float, float]]],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        length: int,
    ) -> None:
        self.images, self.labels, self.sub_policies = images, labels, sub_policies
        self.length = length
        self.default = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index])
        for name, probability, level in random.choice(self.sub_policies):
            if random.random() < probability:
                low, high, mirrored, effect = OPERATIONS[name]
                v = low + level * (high - low)
                image = effect(image, -v if mirrored and random.random() < 0.5 else v)
        tensor = self.default(image)
        height, width = tensor.shape[1:]
        y, x = np.random.randint(height), np.random.randint(width)
        rows = slice(max(0, y - self.length // 2), min(height, y + self.length // 2))
        columns = slice(max(0, x - self.length // 2), min(width, x + self.length // 2))
        tensor[:, rows, columns] = 0.0
        return tensor, int(self.labels[index])


@torch.inference_mode()
def evaluate(
    theta: nn.Module, dataset: PillowImages, *, copies: int = 5, workers: int = 4, batch: int = 128
) -> tuple[Tensor, Tensor]:
    """Return losses and hits, each (copies, N), of theta on copies of the data set."""
    loaders = [iter(DataLoader(dataset, batch, num_workers=workers)) for _ in range(copies)]
    losses: list[list[Tensor]] = [[] for _ in loaders]
    hits: list[list[Tensor]] = [[] for _ in loaders]
    for batches in zip(*loaders, strict=True):
        for copy, (images, labels) in enumerate(batches):
            logits = theta(images)
            losses[copy].append(F.cross_entropy(logits, labels, reduction="none"))
            hits[copy].append(logits.argmax(1) == labels)
    empty = [torch.empty(0)]
    return (
        torch.stack([torch.cat(parts or empty) for parts in losses]),
        torch.stack([torch.cat(parts or empty) for parts in hits]),
    )
