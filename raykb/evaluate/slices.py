"""One slice of a case as a network segments it: what a picture is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raykb.engine.loop import Evaluated
from raykb.evaluate.segmentation import LabelledVolume
from raykb.evaluate.sliding_window import SlidingWindow

_OUTER = (0.5, 99.5)  # percentiles that are black and white


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """The slice with most of the foreground, of the first case that has any; it has no figures.

    Attributes:
        cases: to choose from.
        window: how a volume goes through the network.
    """

    cases: Sequence[LabelledVolume]
    window: SlidingWindow

    @torch.inference_mode()
    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return as details ``case``, ``slice`` (its number), and (Y, X) each as lists of numbers.

        These are ``image``, the first channel in 0..255, ``reference`` and ``prediction``.
        """
        case = next((case for case in self.cases if (case.label > 0).any()), self.cases[0])
        number = int((case.label > 0).sum(axis=(1, 2)).argmax())
        image = torch.from_numpy(np.array(case.image, np.float32))
        logits = self.window.logits(network, image, device)  # (K, Z, Y, X)
        shown = {
            "image": _grey(case.image[0, number]),
            "reference": case.label[number],
            "prediction": logits[:, number].argmax(0).cpu().numpy(),
        }
        planes = {name: plane.astype(int).tolist() for name, plane in shown.items()}
        return Evaluated({}, {"case": case.name, "slice": number} | planes)


def _grey(plane: np.ndarray) -> np.ndarray:
    """Return intensities as 0..255, what is far out cut off."""
    low, high = np.percentile(plane, _OUTER)
    grey: np.ndarray = np.clip((plane - low) / max(high - low, 1e-8), 0, 1) * 255
    return grey
