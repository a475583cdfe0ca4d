"""ViLT: words and patches of an image through one transformer.

Kim, Son, Kim, "ViLT: Vision-and-Language Transformer without convolution or region supervision",
ICML 2021, arXiv:2102.03334.

    tokens ─ words + positions + segment ─ norm ─ + type 0 ─┐
                                                            ├─ blocks ─ norm ─ tokens ─ pooled
    images ─ class token, patches + positions ─── + type 1 ─┘

    pooled = tanh(W x_0)              x_0: the first token, which is the text's [CLS]
    match  = linear(pooled)           logits of: does not belong, belongs

Either half goes through the same blocks alone, too; an image then has its class token as x_0. So
the network is a classifier of images like others of the house, and can be used as two towers.

Departures: no dropout; weights start as those of ``vit.py`` where the paper takes a ViT that was
trained before; what is padding is told by a mask, not by pixels that sum to 0.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.models.vit import VisionTransformer
from raykb.parts.patches import grid, of_images

PAD = 0  # the token of places without text, in every vocabulary


class Joint(NamedTuple):
    """What becomes of a text and an image that were seen together."""

    text: Tensor  # (N, L, width)
    image: Tensor  # (N, K, width), the patches that are seen, without the class token
    present: Tensor  # (N, K) bool, which of them are no padding
    pooled: Tensor  # (N, width)


class TextEmbedding(nn.Module):
    """BERT's: words, places and one segment, and a norm; from (N, L) tokens to (N, L, width)."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(length, width))
        self.segment = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        for table in (self.words.weight, self.places, self.segment):
            nn.init.normal_(table, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (N, L, width).

        Raises:
            ValueError: the texts are longer than the table of places.
        """
        length = tokens.shape[1]
        if length > len(self.places):
            raise ValueError(
                f"tokens: {length} of a text, must be at most {len(self.places)}; set "
                "model.text_length to that of the texts"
            )
        embedded: Tensor = self.norm(self.words(tokens) + self.places[:length] + self.segment)
        return embedded


class ViLT(nn.Module):
    """ViLT, from images (N, channels, H, W) and tokens (N, L) to what becomes of both.

    Args:
        classes: number of classes, for its use as a classifier of images.
        channels: of the images.
        vocabulary: number of tokens; 0 is padding.
        text_length: tokens of the longest text.
        image_size: side of the images that its positions are of, in pixels.
        patch: side of a patch in pixels.
        width: of the tokens.
        depth: number of blocks.
        heads: of the attention; they divide the width.

    Attributes:
        width: of the tokens, and of the features.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        *,
        vocabulary: int = 30522,
        text_length: int = 40,
        image_size: int = 64,
        patch: int = 8,
        width: int = 96,
        depth: int = 4,
        heads: int = 3,
    ) -> None:
        super().__init__()
        self.width, self.patch = width, patch
        self.visual = VisionTransformer(
            classes,
            channels,
            image_size=image_size,
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
        )
        self.textual = TextEmbedding(vocabulary, text_length, width)
        self.types = nn.Parameter(torch.empty(2, width))
        self.pooler = nn.Linear(width, width)
        self.matching = nn.Linear(width, 2)
        nn.init.normal_(self.types, std=0.02)

    def joint(
        self,
        images: Tensor,
        tokens: Tensor,
        sizes: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Joint:
        """Return what becomes of images and texts.

        Args:
            images: (N, channels, H, W).
            tokens: (N, L) int64, 0 where there is no text.
            sizes: (N, 2) height and width of each image in pixels, at the top left of what is
                padding; None where there is none.
            places: (N, K) int64, the patches that are seen, row by row; None for all.
        """
        text = self.textual(tokens) + self.types[0]
        image, present = self._embedded(images, sizes, places)
        padding = torch.cat([tokens == PAD, ~present], 1)
        encoded: Tensor = self.visual.encoder(torch.cat([text, image], 1), padding=padding)
        length = tokens.shape[1]
        seen = encoded[:, length + 1 :]
        return Joint(encoded[:, :length], seen, present[:, 1:], self._pooled(encoded))

    def text_features(self, tokens: Tensor) -> Tensor:
        """Return features (N, width) of texts alone."""
        embedded = self.textual(tokens) + self.types[0]
        return self._pooled(self.visual.encoder(embedded, padding=tokens == PAD))

    def features(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return features (N, width) of images alone; ``sizes`` as of :meth:`joint`."""
        embedded, present = self._embedded(images, sizes, None)
        return self._pooled(self.visual.encoder(embedded, padding=~present))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, classes) of features (N, width)."""
        return self.visual.classify(features)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, channels, H, W)."""
        return self.classify(self.features(images))

    def _embedded(
        self, images: Tensor, sizes: Tensor | None, places: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return class token and patches, (N, 1 + K, width), and which are no padding."""
        table, whole = self.visual.encoder.pos_embedding, grid(images, self.patch)
        if sizes is None:
            sizes = torch.tensor(images.shape[2:], device=images.device).expand(len(images), 2)
        patches = self.visual.embed(images)
        patches = patches + resized_positions(table[0, 1:], sizes // self.patch, whole)
        present = of_images(sizes, self.patch, whole)
        if places is not None:
            patches = patches.gather(1, places[:, :, None].expand(-1, -1, self.width))
            present = present.gather(1, places)
        first = (self.visual.class_token + table[:, :1]).expand(len(images), -1, -1)
        embedded = torch.cat([first, patches], 1) + self.types[1]
        return embedded, F.pad(present, (1, 0), value=True)

    def _pooled(self, encoded: Tensor) -> Tensor:
        pooled: Tensor = self.pooler(encoded[:, 0]).tanh()
        return pooled


def resized_positions(table: Tensor, grids: Tensor, whole: tuple[int, int]) -> Tensor:
    """Return the positions (N, h w, width) of patches of images, each of its own grid.

    The table is resized to each grid, bilinear with its corners kept; what lies beyond is 0.

    Args:
        table: (side side, width), positions of a square grid.
        grids: (N, 2) rows and columns that an image has.
        whole: h and w of the batch's grid.
    """
    side = math.isqrt(len(table))
    rows, columns = (
        _bilinear(own, count, side) for own, count in zip(grids.unbind(1), whole, strict=True)
    )
    square = table.unflatten(0, (side, side))
    return torch.einsum("nhs,nwt,std->nhwd", rows.to(table), columns.to(table), square).flatten(
        1, 2
    )


def _bilinear(counts: Tensor, whole: int, side: int) -> Tensor:
    """Return what each of ``whole`` places takes of ``side``, (N, whole, side), by counts (N,)."""
    places, sources = (torch.arange(count, device=counts.device) for count in (whole, side))
    at = places * (side - 1) / (counts[:, None] - 1).clamp(min=1)  # (N, whole)
    shares = (1 - (at[:, :, None] - sources).abs()).clamp(min=0)
    return shares * (places < counts[:, None])[:, :, None]


vilt_b_32 = functools.partial(ViLT, image_size=384, patch=32, width=768, depth=12, heads=12)
"""ViLT-B/32: blocks and projection of patches have 87.4 million parameters, as published."""
