"""Vision transformers (Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, 2010.11929).

    images ─ embed ─ + positions ─┬─ blocks ─ norm ─┬─ class token, or mean ─ features ─ logits
                  class token ────┘                 └─ tokens

Parameters have the names of torchvision's, whose state loads into :func:`vit_b_16`. Images of any
size whose sides the patch divides are taken: learned positions are interpolated (the paper,
section 3.2, bicubic).

Departures: weights start as those of masked autoencoders (He et al., CVPR 2022): Xavier's uniform
distribution, the patches' as if they were of a linear layer. Drop path is DeiT's addition.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.parts.patches import grid
from raykb.parts.transformer import Block, sine_cosine_positions

Pool = Literal["class", "mean"]
Positions = Literal["learned", "sine_cosine"]


class Encoder(nn.Module):
    """Blocks and a norm, and the positions of the class token and of the patches of a grid."""

    def __init__(self, side: int, width: int, blocks: Sequence[Block], positions: str) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, 1 + side**2, width))
        layers = {f"encoder_layer_{number}": block for number, block in enumerate(blocks)}
        self.layers = nn.Sequential(OrderedDict[str, nn.Module](layers))
        self.ln = nn.LayerNorm(width, eps=1e-6)
        if positions == "learned":
            nn.init.normal_(self.pos_embedding, std=0.02)
        else:
            self.pos_embedding.requires_grad_(False).zero_()
            self.pos_embedding[:, 1:] = sine_cosine_positions(side, side, width)

    def forward(
        self, x: Tensor, blocks: Sequence[int] = (), padding: Tensor | None = None
    ) -> Tensor:
        """Return the norm of the mean of the outputs of ``blocks``, or of the last one alone.

        No token heeds those where ``padding`` (N, S) is true.
        """
        outputs = []
        for layer in self.layers:
            x = layer(x, padding)
            outputs.append(x)
        if blocks:
            x = torch.stack([outputs[number - 1] for number in blocks]).mean(0)
        normed: Tensor = self.ln(x)
        return normed


class VisionTransformer(nn.Module):
    """A vision transformer, from (N, channels, H, W) to logits (N, classes).

    Args:
        classes: number of classes.
        channels: of the images.
        image_size: side of the images that its positions are of, in pixels.
        patch: side of a patch in pixels.
        width: of the tokens.
        depth: number of blocks.
        heads: of the attention; they divide the width.
        mlp_ratio: width of a block's hidden layer, by that of the tokens.
        drop_path: share of the samples for which the last block is left out; those before it less,
            in equal steps from 0.
        pool: whether the features are the ``class`` token or the ``mean`` of the patches' tokens.
        position: ``learned``, or fixed as ``sine_cosine``.

    Attributes:
        channels: of the images.
        width: of the tokens, and of the features.
        patch: side of a patch in pixels.
        depth: number of blocks.

    Raises:
        ValueError: a setting is out of its range, or the heads do not divide the width, or the
            patch the image.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        *,
        image_size: int = 32,
        patch: int = 4,
        width: int = 96,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        pool: Pool = "class",
        position: Positions = "learned",
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads or image_size % patch:
            raise ValueError(
                f"width={width}, heads={heads}, image_size={image_size}, patch={patch}: heads must "
                "divide the width, and the patch the image's side"
            )
        if depth < 1 or not 0.0 <= drop_path < 1.0:
            raise ValueError(
                f"depth={depth}, drop_path={drop_path}: must be at least 1, and in [0, 1)"
            )
        if pool not in ("class", "mean") or position not in ("learned", "sine_cosine"):
            raise ValueError(
                f"pool={pool!r}, position={position!r}: must be 'class' or 'mean', and 'learned' "
                "or 'sine_cosine'"
            )
        self.channels, self.pool = channels, pool
        self.width, self.patch, self.depth = width, patch, depth
        rates = [drop_path * number / max(depth - 1, 1) for number in range(depth)]
        blocks = [Block(width, heads, hidden=mlp_ratio * width, drop_path=rate) for rate in rates]
        self.conv_proj = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.encoder = Encoder(image_size // patch, width, blocks, position)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, classes)))
        self.apply(_initialise)
        nn.init.normal_(self.class_token, std=0.02)

    @property
    def map_width(self) -> int:
        """Channels of the maps."""
        return self.width

    def embed(self, images: Tensor) -> Tensor:
        """Return the patches (N, T, width) of images, row by row, that know no positions.

        Raises:
            ValueError: the patch does not divide the sides of the images.
        """
        grid(images, self.patch)  # a convolution would pass over what is left
        patches: Tensor = self.conv_proj(images)  # (N, width, h, w)
        return patches.flatten(2).transpose(1, 2)

    def positions(self, images: Tensor) -> Tensor:
        """Return the positions (1, T, width) of the patches of such images."""
        own = self.encoder.pos_embedding[:, 1:]
        side = math.isqrt(own.shape[1])
        rows, columns = grid(images, self.patch)
        if (rows, columns) == (side, side):
            return own
        maps = own.transpose(1, 2).unflatten(2, (side, side))  # (1, width, side, side)
        resized = F.interpolate(maps, (rows, columns), mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)

    def encode(self, embedded: Tensor, *, blocks: Sequence[int] = ()) -> Tensor:
        """Return the tokens (N, S, width) of any S patches with their positions.

        Args:
            embedded: (N, S, width).
            blocks: from 1 to the depth, those over whose outputs the mean is taken; the last one
                where none is named.
        """
        return self._encode(embedded, blocks)[:, 1:]

    def tokens(self, images: Tensor) -> Tensor:
        """Return the last tokens (N, T, width) of the patches of images."""
        return self.encode(self.embed(images) + self.positions(images))

    def maps(self, images: Tensor) -> Tensor:
        """Return the last tokens where their patches are, (N, width, h, w)."""
        maps: Tensor = self.tokens(images).transpose(1, 2).unflatten(2, grid(images, self.patch))
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Return the class token, or the mean of the patches' tokens, (N, width)."""
        encoded = self._encode(self.embed(images) + self.positions(images))
        return encoded[:, 0] if self.pool == "class" else encoded[:, 1:].mean(1)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, classes) of features (N, width)."""
        logits: Tensor = self.heads(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, channels, H, W)."""
        return self.classify(self.features(images))

    def _encode(self, embedded: Tensor, blocks: Sequence[int] = ()) -> Tensor:
        """Return the class token and those of the patches, (N, 1 + S, width)."""
        first = self.class_token + self.encoder.pos_embedding[:, :1]
        encoded: Tensor = self.encoder(
            torch.cat([first.expand(len(embedded), -1, -1), embedded], 1), blocks
        )
        return encoded


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.MultiheadAttention):
        nn.init.xavier_uniform_(module.in_proj_weight)
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vit_tiny_patch4(
    classes: int,
    channels: int = 3,
    *,
    image_size: int = 32,
    drop_path: float = 0.0,
    pool: Pool = "class",
    position: Positions = "learned",
) -> VisionTransformer:
    """Return ViT-Ti/4 for images of about 32 pixels; 5.4 million parameters."""
    return VisionTransformer(
        classes,
        channels,
        image_size=image_size,
        patch=4,
        width=192,
        depth=12,
        heads=3,
        drop_path=drop_path,
        pool=pool,
        position=position,
    )


def vit_small_patch16(
    classes: int,
    channels: int = 3,
    *,
    image_size: int = 224,
    drop_path: float = 0.0,
    pool: Pool = "class",
    position: Positions = "learned",
) -> VisionTransformer:
    """Return ViT-S/16 (22.1 million parameters with 1000 classes)."""
    return VisionTransformer(
        classes,
        channels,
        image_size=image_size,
        patch=16,
        width=384,
        depth=12,
        heads=6,
        drop_path=drop_path,
        pool=pool,
        position=position,
    )


def vit_b_16(
    classes: int,
    channels: int = 3,
    *,
    image_size: int = 224,
    drop_path: float = 0.0,
    pool: Pool = "class",
    position: Positions = "learned",
) -> VisionTransformer:
    """Return ViT-B/16 (86.6 million parameters with 1000 classes), by torchvision's names."""
    return VisionTransformer(
        classes,
        channels,
        image_size=image_size,
        patch=16,
        width=768,
        depth=12,
        heads=12,
        drop_path=drop_path,
        pool=pool,
        position=position,
    )
