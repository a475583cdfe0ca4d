"""Retrieval between images and texts: whether what belongs to a query is among the first k.

    image_recall_k   share of texts one of whose images is among the k that score highest
    text_recall_k    share of images whose text is among the k that score highest

Karpathy, Fei-Fei, "Deep visual-semantic alignments", CVPR 2015, section 4.2. Captions that are the
same are one text. By chance R@k is about k by the number of texts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raykb.data.feed import plain_batches
from raykb.data.source import Examples, View
from raykb.engine.loop import Evaluated
from raykb.evaluate.pair_scores import Scores

CUTS = (1, 5, 10)  # the k
_SHOWN, _TEXTS = 5, 3  # queries, and images of each, in the details; and texts of each


@dataclass(frozen=True, eq=False)
class PairRetrieval:
    """Retrieval both ways over examples with ``images``, their ``sizes`` and ``tokens``.

    Attributes:
        examples: of which queries are, and what is found.
        view: its plain form is what the network takes.
        scores: of texts and images.
    """

    examples: Examples
    view: View
    scores: Scores

    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return ``image_recall_k`` and ``text_recall_k``; details: what some pairs find.

        Of these, all by their rows: the ``queries``, the ``nearest`` images of the text of each,
        and for its image the best ``texts``, each by the first that has it.
        """
        fields = list(plain_batches(self.examples, self.view, device))
        images, sizes, tokens = (
            torch.cat([each[name] for each in fields]) for name in ("images", "sizes", "tokens")
        )
        texts, own = tokens.unique(dim=0, return_inverse=True)  # (T, L), (I,)
        scores = self.scores(network, images, sizes, texts)  # (T, I)
        belongs = own[None] == torch.arange(len(texts), device=device)[:, None]
        figures = recalls(scores, belongs, "image") | recalls(scores.T, belongs.T, "text")
        queries = spread(len(images), _SHOWN)
        ranks = scores[own[queries]].argsort(dim=1, descending=True, stable=True)
        best = scores.T[queries].argsort(dim=1, descending=True, stable=True)
        first = belongs.int().argmax(1)  # (T,) who has a text
        details = {
            "queries": queries,
            "nearest": ranks[:, :_SHOWN].tolist(),
            "texts": first[best[:, :_TEXTS]].tolist(),
        }
        return Evaluated(figures, details)


def spread(count: int, shown: int) -> list[int]:
    """Return some of ``count`` rows at equal distances, each once."""
    return list(dict.fromkeys(np.linspace(0, count - 1, shown).astype(int).tolist()))


def recalls(scores: Tensor, belongs: Tensor, what: str) -> dict[str, float]:
    """Return the R@k of queries (rows), named ``<what>_recall_<k>``.

    Args:
        scores: (Q, N); of equal ones, the first is found first.
        belongs: (Q, N) bool.
        what: is looked for.
    """
    found = belongs.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    return {f"{what}_recall_{k}": found[:, :k].any(1).float().mean().item() for k in CUTS}
