"""Images whose class is the angle of a bar: rotation and shear destroy the label, little else does.

A policy that was searched on them tells what its reward is blind to.
"""

from collections.abc import Callable

import numpy as np
import torch

from raykb.augment.policy import Policy, Triple
from raykb.data.images import ImageSet
from raykb.data.operations import OPERATIONS

ANGLES = 12
BARS = [
    "view={name: crop_flip, mean: [0.3], std: [0.25], padding: 2, flip: false}",
    "model={name: small_convnet}",
    "theta.epochs=30",
    "theta.batch_size=32",
    "splits={name: shuffle, splits: 2}",
    "search.rounds=1",
    "search.width=80",
]
"""What a config of ``fastaa_search`` needs changed to search on bars: above all, no flip."""
TURNING = ("Rotate", "ShearX", "ShearY")
_IDLE = {"Solarize": 256.0, "Posterize": 8.0, "Cutout": 0.0}  # the magnitude that changes nothing


def bars(each: int, *, side: int = 28, noise: float = 0.2, seed: int = 0) -> ImageSet:
    """Return ``each`` noisy images (1, side, side) of a bar at each of 12 angles, 15 degrees apart.

    The bar's middle lies up to a tenth of the side off the image's; its brightness and that of
    what is behind it vary from image to image.

    Args:
        each: images of an angle.
        side: pixels.
        noise: standard deviation, of pixel values in [0, 1].
        seed: of offsets, brightness and noise.
    """
    numbers = np.random.default_rng(seed)
    labels = np.repeat(np.arange(ANGLES), each)
    angle = np.pi / ANGLES * labels[:, None, None]
    x, y = (
        np.arange(side) - side / 2 + 0.5 + numbers.uniform(-0.1, 0.1, (len(labels), 1)) * side
        for _ in range(2)
    )
    x, y = x[:, None, :], y[:, :, None]
    across = np.abs(x * np.sin(angle) - y * np.cos(angle))  # pixels from the bar's axis
    along = np.abs(x * np.cos(angle) + y * np.sin(angle))
    inside = np.clip(side / 14 - across, 0, 1) * np.clip(0.4 * side - along, 0, 1)
    behind, bright = numbers.uniform(0.1, 0.3, (2, len(labels), 1, 1))
    values = behind + (0.3 + bright) * inside + numbers.normal(0, noise, inside.shape)
    images = (values.clip(0, 1) * 255).astype(np.uint8)[:, None]
    names = tuple(f"{180 // ANGLES * number} degrees" for number in range(ANGLES))
    return ImageSet(images, labels, np.arange(len(labels)), names)


def turning_share(policy: Policy, strength: Callable[[Triple], float]) -> float:
    """Return how much of a policy's strength, summed over its operations, is rotation and shear."""
    triples = [Triple(*triple) for sub_policy in policy.sub_policies for triple in sub_policy]
    turning = sum(strength(triple) for triple in triples if triple.operation in TURNING)
    return turning / sum(map(strength, triples))


def by_level(triple: Triple) -> float:
    """Probability times level; 3 of 15 parts of a random policy's turn the image."""
    return triple.probability * triple.level


def by_effect(triple: Triple) -> float:
    """Probability times how far from doing nothing, as a share of the farthest.

    A level of 1/2 turns by 0 degrees. What has no magnitude is as far as can be. 1/6 of a random
    policy's turns the image.
    """
    operation = OPERATIONS[triple.operation]
    if operation.low == operation.high:
        return triple.probability
    idle = _IDLE.get(triple.operation, 0.0 if operation.mirrored else 1.0)
    reach = max(abs(end - idle) for end in (operation.low, operation.high))
    magnitude = float(operation.magnitude(torch.tensor(triple.level, dtype=torch.float64)))
    return triple.probability * abs(magnitude - idle) / reach
