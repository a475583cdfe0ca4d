"""ViLT: what is learnt of images and texts that belong together.

Kim, Son, Kim, "ViLT: Vision-and-Language Transformer without convolution or region supervision",
ICML 2021, arXiv:2102.03334. The network is ``raykb/models/vilt.py``.

    L     = L_MLM + L_ITM + L_WPA
    L_MLM = cross entropy of hidden tokens, of the true image and the text without them
    L_ITM = cross entropy of whether image and text belong together, y
    L_WPA = w/b (sum_{y=1} d - sum_{y=0} d)

Symbols:
    b    pairs of a batch; of floor(b/2) the image is the true one (y = 1), of the others one drawn
         from the data set
    d    optimal transport distance of words and patches (``raykb/parts/optimal_transport.py``)
    w    weight of the alignment, 0.1

Two passes a step: text with hidden words and true image; whole text, true or false image. Each sees
a draw of the patches of its images, where they have more than it may.

Which words are hidden, which patches are seen, which images are false and which pairs get them is
decided by (seed, epoch, id), see ``raykb/data/pair_views.py``. State: the head of L_MLM, transform
and decoder as BERT's.

Departures: a text without hidden tokens counts as none in L_MLM, so that a batch without any has a
loss of 0; the pooled heads are the network's, so that what remains of a training can be asked.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import above, at_least, check_settings, or_none
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import WithText, require
from raykb.parts.optimal_transport import transport_distance
from raykb.parts.patches import grid, of_images
from raykb.parts.precision import at_least_float32
from raykb.recognition.batch import PairBatch


def true_pairs(lots: Tensor) -> Tensor:
    """Return y (b,) int64: 1 for the floor(b/2) pairs with the lowest of lots (b,)."""
    return (lots.argsort().argsort() < len(lots) // 2).long()


def seen_places(lots: Tensor, present: Tensor, most: int | None) -> Tensor | None:
    """Return the patches (N, K) with the lowest of lots (N, T), those that are padding last.

    There are ``most`` of them, or None, which stands for all, where there are no more than that.
    """
    if most is None or lots.shape[1] <= most:
        return None
    return torch.where(present, lots, 2.0).argsort(1)[:, :most]


def hidden_loss(logits: Tensor, hidden: Tensor) -> Tensor:
    """Return L_MLM of logits (N, L, V) and tokens (N, L), -100 where none was hidden."""
    scores = at_least_float32(logits).flatten(0, 1)
    total = F.cross_entropy(scores, hidden.flatten(), reduction="sum")
    return total / (hidden >= 0).sum().clamp(min=1)


def alignment_loss(distances: Tensor, true: Tensor) -> Tensor:
    """Return L_WPA, without its weight, of d (b,) and y (b,)."""
    return (distances * (2 * true - 1)).mean()


class ViLTObjective(Objective):
    """ViLT's pre-training.

    Args:
        task: what it is told; its network must take texts, too.
        alignment_weight: w; 0 leaves optimal transport out.
        beta: of IPOT.
        iterations: of IPOT.
        most_patches: of an image that are seen in a pass, drawn anew in each; null for all. The
            paper has 200.
    """

    sees = PairBatch
    scored_by: ClassVar[str] = "matching"  # of the scores in raykb/evaluate

    def __init__(
        self,
        task: Task,
        *,
        alignment_weight: float = 0.1,
        beta: float = 0.5,
        iterations: int = 50,
        most_patches: int | None = None,
    ) -> None:
        super().__init__(task)
        self.alignment_weight, self.beta, self.iterations = alignment_weight, beta, iterations
        self.most_patches = most_patches
        rules = {"alignment_weight": at_least(0), "beta": above(0), "iterations": at_least(1)}
        check_settings(self, **rules, most_patches=or_none(at_least(1)))
        network = require(task.network, WithText, "vilt")
        width, vocabulary = network.width, network.textual.words.num_embeddings
        transform, decoder = nn.Linear(width, width), nn.Linear(width, vocabulary)
        for layer in (transform, decoder):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.words = nn.Sequential(transform, nn.GELU(), nn.LayerNorm(width, eps=1e-12), decoder)

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its parts, and how often words and pairs are told rightly."""
        seen = require(network, WithText, "vilt")
        first, second = batch.patch_lots.unbind(1)
        hidden = self._joint(seen, batch.images, batch.masked, batch.sizes, first)
        words = self.words(hidden.text)  # (N, L, V)
        true = true_pairs(batch.lots)
        images = torch.where(true[:, None, None, None] == 1, batch.images, batch.false_images)
        sizes = torch.where(true[:, None] == 1, batch.sizes, batch.false_sizes)
        both = self._joint(seen, images, batch.tokens, sizes, second)
        logits = at_least_float32(seen.matching(both.pooled))  # (N, 2)
        distances = transport_distance(
            both.text,
            both.image,
            batch.words >= 0,
            both.present,
            beta=self.beta,
            iterations=self.iterations,
        )
        parts = {
            "loss_words": hidden_loss(words, batch.hidden),
            "loss_matching": F.cross_entropy(logits, true),
            "loss_alignment": self.alignment_weight * alignment_loss(distances, true),
        }
        hits = (words.detach().argmax(2) == batch.hidden).sum()
        figures = {
            "words_right": hits / (batch.hidden >= 0).sum().clamp(min=1),
            "pairs_right": (logits.detach().argmax(1) == true).float().mean(),
        }
        logged = {name: part.detach() for name, part in parts.items()}
        return {"loss": torch.stack([*parts.values()]).sum()} | logged | figures

    def _joint(
        self, network: Any, images: Tensor, tokens: Tensor, sizes: Tensor, lots: Tensor
    ) -> Any:
        """Return what becomes of a pass, which sees some patches alone."""
        present = of_images(sizes, network.patch, grid(images, network.patch))
        places = seen_places(lots, present, self.most_patches)
        return network.joint(images, tokens, sizes, places)
