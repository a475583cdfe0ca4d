"""How well texts and images belong together, by a network that takes both.

matching   log-odds of its head for pairs: every text with every image goes through the network
cosine     of features: every text and every image goes through it once
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.parts.backbone import WithText, require

_PAIRS = 500  # that go through the network at once

Scores = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""``scores(network, images, sizes, tokens)``: (T, I) of images and texts (T, L).

Images (I, C, H, W) are at the top left of what is padding, as high and wide as sizes (I, 2) say.
"""


@torch.no_grad()
def matching_scores(network: nn.Module, images: Tensor, sizes: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-odds that a text (row) and an image (column) belong together."""
    seen = require(network, WithText, "a score of pairs")
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(len(images)))
    found = []
    for text, image in (each.to(images.device).unbind(1) for each in pairs.split(_PAIRS)):
        both = seen.joint(images[image], tokens[text], sizes[image])
        logits = seen.matching(both.pooled).float()
        found.append(logits[:, 1] - logits[:, 0])
    return torch.cat(found).view(len(tokens), len(images))


@torch.no_grad()
def cosine_scores(network: nn.Module, images: Tensor, sizes: Tensor, tokens: Tensor) -> Tensor:
    """Return the cosine of the features of a text (row) and an image (column)."""
    seen = require(network, WithText, "a score of pairs")
    texts = [seen.text_features(part) for part in tokens.split(_PAIRS)]
    parts = zip(images.split(_PAIRS), sizes.split(_PAIRS), strict=True)
    shown = [seen.features(*part) for part in parts]
    first, second = (F.normalize(torch.cat(each).float(), dim=1) for each in (texts, shown))
    return first @ second.T


SCORES: dict[str, Scores] = {"matching": matching_scores, "cosine": cosine_scores}
