"""MAE: of a quarter of the patches, say what is in the others.

He, Chen, Xie, Li, Dollár, Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
arXiv:2111.06377. It has no numbered equations; section 3 in formulas:

    z   = f(e(x_v) + p_v)                                   v: the T - M patches not hidden
    y^  = W d([V z; m] + q)                                 at their places, with m at the others
    L   = 1/(N M) sum_i sum_{t hidden} 1/P |y^_it - y_it|^2
    y_t = (x_t - mean x_t) / sqrt(var x_t + 1e-6)           or x_t itself

Symbols:
    x_t     pixels of patch t = 1..T of an image, (P,) with P = C patch^2; M of them are hidden
    e, p    the network's embedding of patches, and its positions, (width,)
    f       the network's blocks, of visible patches alone
    V, m    linear layer to the decoder's width, and its mask token
    d, q    the decoder's blocks, and its fixed positions
    W       linear layer to (P,)

Departures:
    - the decoder does not see the class token (official code: it does), so a network that takes
      its features from the mean of the tokens fits better; the paper has both.
    - the defaults of the decoder are for small images (paper: width 512, depth 8, 16 heads).
"""

import math

import torch
from torch import Tensor, nn

from raykb.engine.arguments import at_least, misfits, refuse, within
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import WithPatches, require
from raykb.parts.patches import grid, hidden_count, patched
from raykb.parts.precision import in_float32
from raykb.parts.transformer import Block, sine_cosine_positions
from raykb.selfsup.batch import MaskedBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.reconstruction import mean_where


@in_float32
def normalised(patches: Tensor) -> Tensor:
    """Return patches (N, T, P), each with mean 0 and variance 1."""
    centred = patches - patches.mean(2, keepdim=True)
    return centred / (patches.var(2, keepdim=True) + 1e-6).sqrt()


@in_float32
def mae_loss(predicted: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Return L, a scalar, which looks at hidden patches alone.

    Args:
        predicted: (N, T, P).
        wanted: (N, T, P).
        mask: (N, T) bool, True where a patch is hidden.
    """
    return mean_where((predicted - wanted).square().mean(2), mask)


class MAE(Objective):
    """MAE.

    Args:
        task: what it is told; its network must have patches.
        mask_ratio: M / T, rounded up to whole patches.
        decoder_width: of the decoder's tokens, a multiple of 4.
        decoder_depth: its blocks.
        decoder_heads: of its attention.
        normalise: whether the pixels of a patch are normalised before they are to be said.

    Attributes:
        patch: side of a patch in pixels.
    """

    sees = MaskedBatch

    def __init__(
        self,
        task: Task,
        *,
        mask_ratio: float = 0.75,
        decoder_width: int = 96,
        decoder_depth: int = 2,
        decoder_heads: int = 3,
        normalise: bool = True,
    ) -> None:
        super().__init__(task)
        self.mask_ratio, self.normalise = mask_ratio, normalise
        self.decoder_width, self.decoder_depth = decoder_width, decoder_depth
        problems = misfits(self, mask_ratio=within(0, 1), decoder_depth=at_least(1))
        if decoder_heads < 1 or decoder_width < 1 or decoder_width % math.lcm(4, decoder_heads):
            problems.append(
                f"decoder_width, decoder_heads: {decoder_width} and {decoder_heads}; the width "
                "must be a multiple of 4 and of the heads"
            )
        refuse(problems)
        network = require(task.network, WithPatches, "mae")
        self.patch = network.patch
        self.embed = nn.Linear(network.width, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(decoder_width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = nn.Sequential(
            *(
                Block(decoder_width, decoder_heads, hidden=4 * decoder_width)
                for _ in range(decoder_depth)
            ),
            nn.LayerNorm(decoder_width, eps=1e-6),
            nn.Linear(decoder_width, network.channels * self.patch**2),
        )

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``, which is of the mean of the tokens."""
        backbone = require(network, WithPatches, "mae")
        images, mask = batch.images, batch.mask
        order = mask.byte().argsort(dim=1, stable=True)  # (N, T): visible patches first
        visible = order[:, : mask.shape[1] - hidden_count(mask.shape[1], self.mask_ratio)]

        embedded = backbone.embed(images) + backbone.positions(images)  # (N, T, width)
        encoded = backbone.encode(at_places(embedded, visible))  # (N, T - M, width)
        predicted = self._decoded(encoded, order.argsort(1), grid(images, self.patch))
        wanted = patched(images, self.patch)
        if self.normalise:
            wanted = normalised(wanted)
        return {
            "loss": mae_loss(predicted, wanted, mask),
            "feature_std": feature_std(encoded.mean(1)),
        }

    def _decoded(self, encoded: Tensor, places: Tensor, sides: tuple[int, int]) -> Tensor:
        """Return what is said of all patches, (N, T, P).

        Args:
            encoded: (N, T - M, width), tokens of the visible patches.
            places: (N, T), where each patch stands when the visible ones are followed by the
                hidden ones.
            sides: of the grid of patches.
        """
        tokens = self.embed(encoded)  # (N, T - M, d)
        hidden = self.mask_token.expand(len(tokens), places.shape[1] - tokens.shape[1], -1)
        tokens = at_places(torch.cat([tokens, hidden.to(tokens)], 1), places)
        positions = sine_cosine_positions(*sides, self.decoder_width, device=tokens.device)
        predicted: Tensor = self.decoder(tokens + positions.to(tokens))
        return predicted


def at_places(tokens: Tensor, places: Tensor) -> Tensor:
    """Return the tokens (N, S, d) of tokens (N, T, d) at places (N, S)."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
