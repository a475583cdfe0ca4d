"""Robustness: how often a classifier errs where its test images are noisy, blurred or foggy.

    error = mean over corruptions c of the mean over severities s of E_sc

    E_sc   share of test images that are taken for another class at severity s of corruption c

The plain mean of ``raykb/metrics/robustness.py``, as results on small images are given. Corrupted
are the pixels before the view, at the constants of their size (``raykb/data/corruptions``); all
networks are asked about the same images.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raykb.data.corruptions import CORRUPTIONS
from raykb.data.feed import plain_batches
from raykb.data.source import Examples, View
from raykb.engine.arguments import at_least, misfits, refuse
from raykb.engine.loop import Evaluated, Evaluation
from raykb.engine.seeding import generator, stream_seed
from raykb.evaluate.corruption import Corrupted, misnamed
from raykb.metrics.robustness import mean_corruption_error

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """A classifier under corruptions; a section of the config.

    Args:
        images: how many are drawn of the test images; all of them where there are no more.
        names: of the corruptions; the fifteen of ImageNet-C by default.
        severities: from 1 to 5.
    """

    images: int = 500
    names: Sequence[str] = tuple(CORRUPTIONS)
    severities: Sequence[int] = (1, 3, 5)

    def __post_init__(self) -> None:
        refuse(misfits(self, images=at_least(1)) + misnamed(self.names, self.severities))

    def of(self, test: Examples, view: View) -> Evaluation:
        """Return the evaluation on test images, which a view makes what the network takes."""
        rows = torch.randperm(len(test), generator=generator(SEED, "robustness"))
        asked = test.subset(np.sort(rows[: self.images].numpy()))
        return functools.partial(self._evaluated, asked, view)

    def _evaluated(
        self, images: Examples, view: View, network: nn.Module, device: torch.device
    ) -> Evaluated:
        """Return ``error`` and ``top1_<name>``, and the errors at each severity as details."""
        seed = stream_seed(SEED, "corruption")
        errors = {
            name: [
                share_wrong(network, Corrupted(images, name, severity, seed), view, device)
                for severity in self.severities
            ]
            for name in self.names
        }
        top1 = {f"top1_{name}": 1.0 - sum(row) / len(row) for name, row in errors.items()}
        figures = {"error": mean_corruption_error(errors, baseline=None)} | top1
        return Evaluated(figures, {"severities": list(self.severities), "errors": errors})


@torch.inference_mode()
def share_wrong(network: nn.Module, examples: Examples, view: View, device: torch.device) -> float:
    """Return the share of examples whose class is not the one of the largest logit."""
    batches = plain_batches(examples, view, device, batch_size=500)
    wrong = [network(of["images"]).argmax(1) != of["labels"] for of in batches]
    return torch.cat(wrong).double().mean().item()
