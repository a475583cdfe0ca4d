"""How well a network segments labelled volumes: Dice and surface Dice of each label and case."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from raykb.engine.arguments import at_least, misfits, or_none, refuse
from raykb.engine.loop import Evaluated
from raykb.evaluate.components import component_scores
from raykb.evaluate.sliding_window import SlidingWindow
from raykb.metrics.overlap import by_label, dice_by_label, foreground_mean, label_means
from raykb.metrics.surface import surface_dice


class LabelledVolume(Protocol):
    """A case; its arrays may be mapped."""

    @property
    def name(self) -> str:
        """What results are paired by."""

    @property
    def image(self) -> np.ndarray:
        """The image (C, Z, Y, X)."""

    @property
    def label(self) -> np.ndarray:
        """The label (Z, Y, X)."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the voxels, along Z, Y and X."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Overlap with labelled volumes, which are segmented whole, one after another.

    Attributes:
        cases: each of another name.
        labels: names by number; 0 is the background, which has no Dice.
        window: how a volume goes through the network.
        tolerance_mm: of the surface Dice (NSD); None for Dice alone.
        components: keep among the details, under ``components``, what Dice would be if the largest
            pieces alone stayed (:func:`raykb.evaluate.components.component_scores`).

    Raises:
        ValueError: there is no case, or a name comes twice, or there is nothing but background.
    """

    cases: Sequence[LabelledVolume]
    labels: Sequence[str]
    window: SlidingWindow
    tolerance_mm: float | None = None
    components: bool = False

    def __post_init__(self) -> None:
        problems = misfits(self, tolerance_mm=or_none(at_least(0)))
        names = [case.name for case in self.cases]
        if not names or len(set(names)) < len(names):
            problems.append(f"cases: {names}, must be at least one, each of another name")
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            problems.append(f"labels: {list(self.labels)}, must be at least two, all different")
        refuse(problems)

    @torch.inference_mode()
    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return ``dice/<label>``, their mean ``dice``, and the same of ``nsd``.

        The details have both by case and label, for what pairs cases. A label's score is the mean
        over the cases that have it, in the label or in what was predicted; one that no case has is
        left out. In the details such a case has None.

        Raises:
            ValueError: the network has another number of classes than there are labels.
        """
        by_case: dict[str, dict[str, dict[str, float]]] = {}
        pieces: dict[str, dict[str, dict[str, float | None]]] = {}
        for case in self.cases:
            predicted = self._predicted(network, case, device)
            by_case[case.name] = self._scores(predicted, case)
            if self.components:
                found = component_scores(predicted, case.label, self.labels)
                pieces[case.name] = {way: _with_holes(scores) for way, scores in found.items()}
        figures: dict[str, float] = {}
        details: dict[str, Any] = {}
        for metric in ("dice",) if self.tolerance_mm is None else ("dice", "nsd"):
            scores = {name: found[metric] for name, found in by_case.items()}
            means = label_means(list(scores.values()))
            figures |= {f"{metric}/{label}": mean for label, mean in means.items()}
            figures[metric] = foreground_mean(list(scores.values()))
            details[metric] = {name: _with_holes(found) for name, found in scores.items()}
        defined = {name: figure for name, figure in figures.items() if not math.isnan(figure)}
        return Evaluated(defined, details | ({"components": pieces} if self.components else {}))

    def _predicted(
        self, network: nn.Module, case: LabelledVolume, device: torch.device
    ) -> np.ndarray:
        """Return the label map of a case."""
        image = torch.from_numpy(np.array(case.image, np.float32))  # a copy of what is mapped
        logits = self.window.logits(network, image, device)  # (K, Z, Y, X)
        if len(logits) != len(self.labels):
            raise ValueError(
                f"network: has {len(logits)} classes, must have {len(self.labels)}, as there are "
                "labels"
            )
        predicted: np.ndarray = logits.argmax(0).cpu().numpy()
        return predicted

    def _scores(self, predicted: np.ndarray, case: LabelledVolume) -> dict[str, dict[str, float]]:
        """Return the scores of a case by metric and label."""
        scores = {"dice": dice_by_label(predicted, case.label, self.labels)}
        if self.tolerance_mm is not None:
            nsd = functools.partial(
                surface_dice, spacing_mm=case.spacing_mm, tolerance_mm=self.tolerance_mm
            )
            scores["nsd"] = by_label(nsd, predicted, case.label, self.labels)
        return scores


def _with_holes(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Return scores as JSON can have them: None for what is not defined."""
    return {label: None if math.isnan(score) else float(score) for label, score in scores.items()}
