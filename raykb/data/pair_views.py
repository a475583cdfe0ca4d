"""Views of images with captions: hidden words, and images that belong to other captions.

Words are hidden whole, as the recipe of ViLT has it (Kim, Son, Kim, ICML 2021): a share of them, at
least one; of their tokens 80 % become [MASK], 10 % any other token, and 10 % stay (Devlin et al.,
"BERT", NAACL 2019).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raykb.data.source import Examples, Fields
from raykb.data.views import ImageView
from raykb.engine.arguments import check_settings, within
from raykb.engine.seeding import keyed_uniform, stream_seed

NOTHING = -100  # of tokens that were not hidden


@dataclass(frozen=True)
class PairView:
    """Images and captions, with what a step hides of these, and a false image for each.

    Attributes:
        form: what becomes of the images.
        others: the examples that false images are drawn of, uniformly; one may be the true one.
        mask: the token [MASK].
        plain_tokens: first and last token, plus one, of those that may stand for another.
        share: of the words that are hidden, in [0, 1).
        patches: of an image, of which a draw is seen; 0 where all are.
    """

    form: ImageView
    others: Examples
    mask: int
    plain_tokens: tuple[int, int]
    share: float = 0.15
    patches: int = 0

    def __post_init__(self) -> None:
        check_settings(self, share=within(0, 1))

    def train(self, arrays: Fields, ids: np.ndarray, seed: int, epoch: int) -> Fields:
        """Return the fields of ``raykb.recognition.batch.PairBatch``, by name."""

        def uniform(name: str, count: int) -> Tensor:
            return keyed_uniform(stream_seed(seed, name, epoch), ids, count)

        tokens, words = arrays["tokens"], arrays["words"]
        lots, false = uniform("pair", 2).unbind(1)
        drawn = self.others.read((false * len(self.others)).long().numpy()).arrays
        device = tokens.device
        others, sizes = (torch.from_numpy(drawn[name]).to(device) for name in ("images", "sizes"))
        draws = uniform("words", 3 * tokens.shape[1]).unflatten(1, (3, -1)).to(device)
        lots_of_patches = uniform("patches", 2 * self.patches)
        masked, hidden = hidden_words(
            tokens, words, draws, self.share, self.mask, self.plain_tokens
        )
        return {
            "images": self.form(arrays["images"], uniform("view", self.form.draws)),
            "false_images": self.form(others, uniform("false", self.form.draws)),
            "tokens": tokens,
            "words": words,
            "masked": masked,
            "hidden": hidden,
            "lots": lots.float(),
            "sizes": arrays["sizes"],
            "false_sizes": sizes,
            "patch_lots": lots_of_patches.view(len(ids), 2, self.patches).float().to(device),
        }

    def finish(self, arrays: Fields) -> Fields:
        """Return the arrays: the view has normalised them."""
        return arrays

    def plain(self, arrays: Fields) -> Fields:
        """Return normalised images, and captions as they are."""
        return arrays | {"images": self.form.plain(arrays["images"])}


def hidden_words(
    tokens: Tensor,
    words: Tensor,
    draws: Tensor,
    share: float,
    mask: int,
    plain_tokens: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return tokens with hidden words, and what was hidden, -100 elsewhere; (N, L) both.

    Args:
        tokens: (N, L).
        words: (N, L), the number of the word that a token is of, -1 of none.
        draws: (N, 3, L) uniform: which words, what becomes of a token, and which other it is.
        share: of the words, rounded; at least one of a text that has words.
        mask: the token [MASK].
        plain_tokens: first and last token, plus one, of those that may stand for another.
    """
    which, what, other = draws.unbind(1)
    count = words.amax(1, keepdim=True) + 1  # (N, 1)
    numbers = torch.arange(tokens.shape[1], device=tokens.device)
    ranks = torch.where(numbers < count, which, 2.0).argsort(1).argsort(1)  # of each word
    wanted = (share * count).round().clamp(min=1)
    chosen = (ranks < wanted).gather(1, words.clamp(min=0)) & (words >= 0)
    first, end = plain_tokens
    substitute = first + (other * (end - first)).long()
    replaced = torch.where(what < 0.8, mask, torch.where(what < 0.9, substitute, tokens))
    return torch.where(chosen, replaced, tokens), torch.where(chosen, tokens, NOTHING)
