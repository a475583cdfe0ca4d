"""What choosing transformations is worth: every way to choose, held against the same network.

    identity    f(x)                                      1 pass
    random_k    k drawn of the twelve                     k
    autocontrast  of every image                          1
    flip        x and its mirror                          2
    five_crops  7/8 of the side, at the middle, corners   5
    learnt_k    the k that the predictor chose            k, and its own two on a thumbnail
    oracle      the best of the twelve, told the class    12

An image's class is that of the highest mean probability over the views that are chosen. Errors are
shares, by corruption and severity; the mean over all of them is how results on small images are
given, and mCE, in units of AlexNet's errors on ImageNet, where all fifteen are asked about.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raykb.augment.loss_prediction import IDENTITY, NAMES, chosen, predicted
from raykb.augment.loss_tables import BASELINES, Arrays
from raykb.data.views import ImageView
from raykb.engine.loop import Evaluated
from raykb.engine.seeding import keyed_uniform, stream_seed
from raykb.metrics.robustness import ALEXNET, mean_corruption_error

CLEAN = "clean"
COUNTS = (1, 2, 4)
Conditions = Mapping[str, Arrays]
"""Test tables by ``<corruption>/<severity>``, and that of ``clean/0``."""


def mean_error(probabilities: Tensor, labels: Tensor, columns: Tensor) -> float:
    """Return the share of errors of the mean over chosen views.

    Args:
        probabilities: (N, V, K) of all views.
        labels: (N,).
        columns: (N, k) views of each image.
    """
    index = columns[..., None].expand(-1, -1, probabilities.shape[2])
    mean = probabilities.gather(1, index).float().mean(1)  # (N, K)
    return float((mean.argmax(1) != labels).float().mean())


def fixed_choices(probabilities: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """Return the views (N, k) of every way to choose that needs no predictor, by its name.

    Args:
        probabilities: (N, V, K) of all views.
        labels: (N,), which the oracle alone sees.
        seed: of what is drawn.
    """
    count, twelve = len(labels), len(NAMES)
    drawn = keyed_uniform(stream_seed(seed, "random views"), np.arange(count), twelve).argsort(1)
    own = probabilities[:, :twelve].float()
    truth = own.gather(2, labels[:, None, None].expand(-1, twelve, 1))[..., 0]  # (N, 12)
    # a network may be sure of another class everywhere, and right by a hair: a hit comes first
    hit = own.argmax(2) == labels[:, None]
    choices = {"identity": torch.full((count, 1), IDENTITY)}
    choices |= {f"random_{k}": drawn[:, :k] for k in COUNTS}
    for name, columns in BASELINES.items():
        choices[name] = torch.tensor(columns).expand(count, -1)
    return choices | {"oracle": (truth + hit).argmax(1, keepdim=True)}


@dataclass(frozen=True, eq=False)
class Choices:
    """Evaluation of a predictor on test tables.

    Attributes:
        conditions: what is chosen from.
        view: normalises thumbnails.
        threshold: of the rule that chooses.
        seed: of what random rivals draw.
    """

    conditions: Conditions
    view: ImageView
    threshold: float
    seed: int

    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return ``error``, ``clean_error`` and ``mce`` of learnt_1, and ``<way>/error``, ….

        The details have the errors by condition, and how often each transformation was chosen.
        """
        errors: dict[str, dict[str, float]] = {}
        used: dict[str, list[float]] = {}
        for condition, table in self.conditions.items():
            probabilities, labels = (
                torch.from_numpy(table[name]) for name in ("probabilities", "labels")
            )
            scores = self._predicted(network, table["thumbnails"], device)
            learnt = functools.partial(chosen, scores, threshold=self.threshold)
            choices = fixed_choices(probabilities, labels, self.seed)
            choices |= {f"learnt_{k}": learnt(k) for k in COUNTS}
            for name, columns in choices.items():
                found = mean_error(probabilities, labels, columns)
                errors.setdefault(name, {})[condition] = found
            first = choices["learnt_1"][:, 0].bincount(minlength=len(NAMES))
            used[condition] = (first / len(labels)).tolist()
        figures = summary(errors["learnt_1"]) | {
            f"{name}/{kind}": value
            for name, row in errors.items()
            for kind, value in summary(row).items()
        }
        return Evaluated(figures, {"errors": errors, "used": used, "names": list(NAMES)})

    def _predicted(self, network: nn.Module, images: np.ndarray, device: torch.device) -> Tensor:
        parts = torch.from_numpy(images).split(500)
        made = [predicted(network, self.view.plain(part.to(device))).cpu() for part in parts]
        return torch.cat(made)


def summary(errors: Mapping[str, float]) -> dict[str, float]:
    """Return ``error`` (mean over corruptions), ``clean_error``, and ``mce`` of all fifteen."""
    by_corruption = rows(errors)
    found = {"error": fmean(map(fmean, by_corruption.values()))}
    if f"{CLEAN}/0" in errors:
        found["clean_error"] = errors[f"{CLEAN}/0"]
    if by_corruption.keys() == ALEXNET.keys():
        found["mce"] = mean_corruption_error(by_corruption)
    return found


def rows(errors: Mapping[str, float]) -> dict[str, Sequence[float]]:
    """Return errors of ``<corruption>/<severity>`` by corruption, in order of severity."""
    found: dict[str, list[float]] = {}
    for condition, error in errors.items():
        corruption, _, _ = condition.partition("/")
        if corruption != CLEAN:
            found.setdefault(corruption, []).append(error)
    return dict(found)


FIXED = ("identity", *(f"random_{k}" for k in COUNTS), *BASELINES, "oracle")
PASSES = {"identity": 1, "oracle": len(NAMES)} | {
    name: len(columns) for name, columns in BASELINES.items()
}
"""Forward passes of the target network for an image, of ways that have no number in their name."""


def ways_to_choose(rivals: Sequence[str], subject: str) -> list[str]:
    """Return the rows of the table beside those of one learnt choice, which have a run's labels."""
    learnt = [f"{label}_{k}" for label in (*rivals, subject) for k in COUNTS[1:]]
    return [*FIXED, *learnt]


def told_rows(
    found: Sequence[tuple[str, int, Mapping[str, float]]], subject: str
) -> list[dict[str, Any]]:
    """Return a row for each way to choose and seed.

    Args:
        found: label, seed number and figures of each predictor; ways without one are as its subject
            has them, for all of a seed saw the same tables.
        subject: the label of the run's own predictor.
    """
    told = []
    for label, seed, figures in found:
        ways = {label: "learnt_1"} | {f"{label}_{k}": f"learnt_{k}" for k in COUNTS[1:]}
        ways |= {name: name for name in FIXED} if label == subject else {}
        for own, way in ways.items():
            row: dict[str, Any] = {"label": own, "seed": seed}
            kinds = ("error", "clean_error", "mce")
            row |= {f"test/{kind}": figures.get(f"test/{way}/{kind}") for kind in kinds}
            passes = PASSES.get(way) or int(way.rpartition("_")[2])
            told.append(row | {"test/passes": passes})
    return told
