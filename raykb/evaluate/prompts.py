"""Classification by prompt: an image is of the class whose name, as a text, fits it best.

Radford et al., "CLIP", ICML 2021, section 3.1, without an ensemble of prompts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raykb.data.feed import plain_batches
from raykb.data.source import Examples, View
from raykb.engine.loop import Evaluated
from raykb.evaluate.pair_scores import Scores


@dataclass(frozen=True, eq=False)
class Prompted:
    """How many labelled images are recognised by the texts of their classes.

    Attributes:
        examples: have ``images``, their ``sizes`` and ``labels``.
        view: its plain form is what the network takes.
        prompts: (C, L) int64, a text for each class.
        scores: of texts and images.
    """

    examples: Examples
    view: View
    prompts: Tensor
    scores: Scores

    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return ``top1``."""
        hits = 0
        for fields in plain_batches(self.examples, self.view, device):
            shown = fields["images"], fields["sizes"]
            scores = self.scores(network, *shown, self.prompts.to(device))  # (C, n)
            hits += int((scores.argmax(0) == fields["labels"]).sum())
        return Evaluated({"top1": hits / len(self.examples)})
