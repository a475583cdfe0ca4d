"""Corruption: what of a linear probe's accuracy is left when images are noisy, blurred or foggy.

    train ─ features ─ linear probe ─┐
    test ─ corrupted ─ features ─────┴─▶ top1 of each corruption, and the mean of all

The probe is fitted on clean images (:mod:`raykb.evaluate.linear_probe`) and then asked about test
images under each corruption at several severities (Hendrycks, Dietterich, "Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations", ICLR 2019, arXiv 1903.12261;
:mod:`raykb.data.corruptions`).

Departures: the plain mean of accuracies, as results on small images are given, where the mCE of the
source is in units of AlexNet's errors on ImageNet (:mod:`raykb.metrics.robustness`); by default
three of its five severities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch

from raykb.data.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, corrupted
from raykb.data.source import Examples, Read
from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.loop import Evaluated
from raykb.engine.seeding import stream_seed
from raykb.evaluate.backbone import Judged
from raykb.evaluate.linear_probe import LinearProbe
from raykb.parts.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """A linear probe under corruptions; a section of the config.

    Args:
        names: of the corruptions; those of ImageNet-C by default.
        severities: from 1 to 5.
        weight_decay: of the probe.
        iterations: of the probe.
    """

    needs: ClassVar[type[Any]] = Backbone
    task: ClassVar[str] = "corruption"
    compared: ClassVar[Sequence[str]] = ("top1",)
    names: Sequence[str] = tuple(CORRUPTIONS)
    severities: Sequence[int] = (1, 3, 5)
    weight_decay: float = 1e-3
    iterations: int = 100

    def __post_init__(self) -> None:
        problems = misfits(self, weight_decay=at_least(0), iterations=at_least(1))
        refuse(problems + misnamed(self.names, self.severities))

    def __call__(self, judged: Judged) -> Evaluated:
        """Return ``top1``, the mean over all, and ``top1_<name>``, that over severities.

        The details have the accuracy of each corruption at each of the ``severities``.
        """
        settings = LinearProbe(weight_decay=self.weight_decay, iterations=self.iterations)
        probe = settings.fitted(judged.train, judged.by.classes)
        seed = stream_seed(judged.by.seed, "corruption")
        found = {}
        for name in self.names:
            each = (Corrupted(judged.by.test, name, severity, seed) for severity in self.severities)
            found[name] = [probe.top1(judged.features(images)) for images in each]
        means = {f"top1_{name}": fmean(row) for name, row in found.items()}
        details = {"severities": list(self.severities), "top1": found}
        return Evaluated({"top1": fmean(means.values())} | means, details)


def misnamed(names: Sequence[str], severities: Sequence[int]) -> list[str]:
    """Return what is wrong with the names and severities of corruptions, if anything is."""
    allowed: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
        "names": (names, (*CORRUPTIONS, *EXTRA)),
        "severities": (severities, SEVERITIES),
    }
    return [
        f"{name}: {given!r}, must be a list of some of {', '.join(map(str, known))}"
        for name, (given, known) in allowed.items()
        if isinstance(given, str) or not given or set(given) - {*known}
    ]


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Other examples, whose images are corrupted when they are read.

    Attributes:
        examples: with ``images`` (N, C, H, W) uint8 among their arrays.
        name: of the corruption.
        severity: from 1 to 5.
        seed: of what is drawn.
    """

    examples: Examples
    name: str
    severity: int
    seed: int

    @property
    def ids(self) -> np.ndarray:
        """Ids of the examples, (N,) int64."""
        return self.examples.ids

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, rows: np.ndarray) -> Read:
        """Return the examples at ``rows``, corrupted."""
        read = self.examples.read(rows)
        images = torch.from_numpy(read.arrays["images"])
        made = corrupted(images, self.name, self.severity, ids=read.ids, seed=self.seed)
        return read._replace(arrays=read.arrays | {"images": made.numpy()})

    def subset(self, rows: np.ndarray) -> "Corrupted":
        """Return the examples at ``rows`` alone; each is corrupted as here."""
        return Corrupted(self.examples.subset(rows), self.name, self.severity, self.seed)
