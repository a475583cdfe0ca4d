"""Two towers: texts and images apart, told to be near where they belong together.

    L = 1/2 (CE over images of s_ij + CE over texts of s_ij)        s_ij = cos(t_i, v_j) / tau

Symbols:
    t_i, v_j   features of text i and image j of a batch, each seen alone
    tau        temperature, learnt, at least 0.01

Radford et al., "Learning transferable visual models from natural language supervision" (CLIP), ICML
2021, arXiv:2103.00020. Here both towers are the blocks of one network (as in You et al., "Learning
visual representation from modality-shared contrastive pre-training", ECCV 2022): so it has the same
parameters as the network of which texts and images are seen together, and a comparison is of that
alone. The network's head for pairs is not used, and kept from the optimizer.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import above, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import WithText, require
from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32
from raykb.recognition.batch import PairBatch

_SHARPEST = math.log(100.0)  # of 1 / tau, as CLIP has it


def contrastive_loss(texts: Tensor, images: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return L, and the scores s (N, N) of texts (rows) and images, (N, d) both."""
    first, second = (F.normalize(at_least_float32(each), dim=1) for each in (texts, images))
    scores = first @ second.T * log_scale.clamp(max=_SHARPEST).exp()
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2, scores


class TwoTowers(Objective):
    """A contrastive loss between texts and images that are seen apart.

    Args:
        task: what it is told; its network must take texts, too.
        temperature: tau at the start.
    """

    sees = PairBatch
    scored_by: ClassVar[str] = "cosine"  # of the scores in raykb/evaluate

    def __init__(self, task: Task, *, temperature: float = 0.07) -> None:
        super().__init__(task)
        self.temperature = temperature
        check_settings(self, temperature=above(0))
        require(task.network, WithText, "two_towers").matching.requires_grad_(False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, and how often a text's own image is the nearest of the batch."""
        seen = require(network, WithText, "two_towers")
        texts, images = seen.text_features(batch.tokens), seen.features(batch.images, batch.sizes)
        loss, scores = contrastive_loss(gather(texts), gather(images), self.log_scale)
        own = torch.arange(len(scores), device=scores.device)
        hits = scores.detach().argmax(1) == own
        return {"loss": loss, "pairs_right": hits.float().mean()}
