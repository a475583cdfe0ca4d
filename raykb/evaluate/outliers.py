"""Whether a classifier is surer of images like its own than of others.

Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
Neural Networks", ICLR 2017, arXiv 1610.02136: the score of an image is its largest softmax, and
the figure is the area under the ROC curve of images inside against images outside.

The softmax is taken in float64: in float32 those of all sure answers are 1, and tie.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raykb.data.feed import plain_batches
from raykb.data.source import Examples, View
from raykb.engine.loop import Evaluated
from raykb.metrics.detection import auroc


@dataclass(frozen=True, eq=False)
class OutlierDetection:
    """AUROC by the largest softmax.

    Attributes:
        inside: test images of the classes that were learnt.
        outside: images of others.
        view: its plain form is what the network takes.
        batch_size: images of one forward pass.
    """

    inside: Examples
    outside: Examples
    view: View
    batch_size: int = 500

    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return ``auroc``."""
        inside, outside = (self._scores(network, of, device) for of in (self.inside, self.outside))
        return Evaluated({"auroc": auroc(inside, outside)})

    @torch.inference_mode()
    def _scores(self, network: nn.Module, examples: Examples, device: torch.device) -> Tensor:
        """Return the largest softmax (N,) of each example."""
        batches = plain_batches(examples, self.view, device, batch_size=self.batch_size)
        return torch.cat([network(of["images"]).double().softmax(1).amax(1) for of in batches])
