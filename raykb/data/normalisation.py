"""What images are normalised by: the figures of data sets that are known by name."""

from collections.abc import Mapping
from typing import Any

CIFAR10 = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
CIFAR100 = {"mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762]}
FASHION_MNIST = {"mean": [0.286], "std": [0.353]}
SVHN = {"mean": [0.4377, 0.4438, 0.4728], "std": [0.1980, 0.2010, 0.1970]}
NORMALISATION: Mapping[str, Mapping[str, list[float]]] = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "fashion_mnist": FASHION_MNIST,
    "fashion_mnist_sample": FASHION_MNIST,
    "svhn": SVHN,
}
"""Mean and standard deviation of the channels by data set, for values in [0, 1]."""


def normalisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``mean`` and ``std`` of what the section ``data`` names; nothing of an unknown one."""
    data = config.get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    return NORMALISATION.get(name, {}) if isinstance(name, str) else {}


def form(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``image_size`` and ``channels`` of the section ``data``, as far as it says them."""
    data = config.get("data")
    said = data if isinstance(data, Mapping) else {}
    return {name: said[name] for name in ("image_size", "channels") if name in said}
