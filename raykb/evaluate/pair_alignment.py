"""Where the words of a text are in its image: optimal transport of words onto patches.

    true    mean d of pairs that belong together
    false   the same, each text beside the image that is half of the set away

Kim, Son, Kim, "ViLT", ICML 2021, section 3.2 and figure 4. d and the plan are those of
``raykb/parts/optimal_transport.py``, at its default settings, whatever those of the training are. A
network that has learnt to align has d below that of false pairs; its plan shows where.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raykb.data.feed import plain_batches
from raykb.data.source import Examples, View
from raykb.engine.loop import Evaluated
from raykb.evaluate.pair_retrieval import spread
from raykb.parts.backbone import WithText, require
from raykb.parts.optimal_transport import cosine_cost, transport_plan
from raykb.parts.patches import grid

_SHOWN = 5  # pairs in the details


@dataclass(frozen=True, eq=False)
class PairAlignment:
    """Alignment of examples with ``images``, their ``sizes``, ``tokens`` and ``words``.

    Attributes:
        examples: pairs that belong together.
        view: its plain form is what the network takes.
    """

    examples: Examples
    view: View

    @torch.no_grad()
    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Return ``true`` and ``false``; details: of some pairs each word's share of the plan."""
        seen = require(network, WithText, "an alignment of words and patches")
        fields = list(plain_batches(self.examples, self.view, device))
        images, sizes, tokens, words = (
            torch.cat([each[name] for each in fields])
            for name in ("images", "sizes", "tokens", "words")
        )
        true, plans = moved(seen, images, sizes, tokens, words)
        half = len(images) // 2
        false, _ = moved(seen, images.roll(half, 0), sizes.roll(half, 0), tokens, words)
        queries, shape = spread(len(images), _SHOWN), grid(images, seen.patch)
        shown = [by_word(tokens[row], words[row], plans[row], shape) for row in queries]
        return Evaluated(
            {"true": true.mean().item(), "false": false.mean().item()},
            {"queries": queries, "words": shown},
        )


def moved(
    network: Any, images: Tensor, sizes: Tensor, tokens: Tensor, words: Tensor
) -> tuple[Tensor, Tensor]:
    """Return d (N,) and the plan (N, L, T) of words onto patches, as a network sees them jointly.

    Args:
        network: takes texts, too.
        images: (N, C, H, W).
        sizes: (N, 2) height and width of each, without padding.
        tokens: (N, L).
        words: (N, L), -1 where a token is of no word.
    """
    both = network.joint(images, tokens, sizes)
    cost = cosine_cost(both.text, both.image)
    plan = transport_plan(cost, words >= 0, both.present)
    return (plan * cost).sum((1, 2)), plan


def by_word(
    tokens: Tensor, words: Tensor, plan: Tensor, shape: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return of each word of a text its ``tokens``, and its ``plan`` (h, w), summed over them."""
    found = []
    for word in range(int(words.max()) + 1):
        own = words == word
        share = plan[own].sum(0).view(shape)
        found.append({"tokens": tokens[own].tolist(), "plan": share.tolist()})
    return found
