"""Jigsaw puzzles: tell in which order the tiles of an image were laid.

Noroozi, Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
ECCV 2016, arXiv:1603.09246.

    L = -1/N sum_i log softmax(g(f(t_i1), ..., f(t_iT)))_{y_i}
    t_ij = tile pi_{y_i}(j) of image i

Symbols:
    t_ij       tile at place j = 1..T of image i = 1..N, row by row of the grid
    pi_y       permutation y = 1..P of the T places, of a set whose members differ in many places
    f, g       network, which sees one tile at a time, to features (width,); two layers to (P,)

Departures:
    - the set is grown so that each new permutation differs in as many places as can be from that
      one of the set that is nearest to it (paper: from all, on average), among 4096 that are drawn.
    - tiles lie without gaps, and are not normalised one by one (paper: both, against shortcuts).
    - any network and any size of tiles (paper: an AlexNet on tiles of 64 pixels).
"""

import itertools
import math

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import at_least, check_settings
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.gather import gather
from raykb.parts.precision import at_least_float32
from raykb.selfsup.batch import TilesBatch
from raykb.selfsup.collapse import feature_std

CANDIDATES = 4096


def distant_permutations(places: int, count: int) -> np.ndarray:
    """Return permutations (count, places) that differ from each other in many places.

    The first leaves all in place; the set is the same wherever it is made.

    Raises:
        ValueError: there are not as many.
    """
    most = min(math.factorial(places), CANDIDATES)
    if not 2 <= count <= most:
        raise ValueError(f"permutations: {count} of {places} tiles, must be in 2..{most}")
    candidates = _candidates(places)
    found: np.ndarray = candidates[:1]
    nearest = np.full(len(candidates), places + 1)
    while len(found) < count:
        nearest = np.minimum(nearest, (candidates != found[-1]).sum(1))
        found = np.concatenate([found, candidates[[nearest.argmax()]]])
    return found


def _candidates(places: int) -> np.ndarray:
    if math.factorial(places) <= CANDIDATES:
        return np.array(list(itertools.permutations(range(places))))
    draws = np.random.Generator(np.random.PCG64(0)).random((CANDIDATES, places))
    draws[0] = np.arange(places)
    distinct: np.ndarray = np.unique(draws.argsort(1), axis=0)
    return distinct


def tiles(images: Tensor, grid: int) -> Tensor:
    """Return the tiles (N, grid * grid, C, h, w) of images (N, C, H, W), row by row.

    What is left over at the right and at the bottom is cut off.

    Raises:
        ValueError: an image has fewer pixels than tiles.
    """
    height, width = (size // grid for size in images.shape[2:])
    if min(height, width) < 1:
        raise ValueError(
            f"images: of {images.shape[2]} x {images.shape[3]} pixels, must have at least "
            f"{grid} x {grid}; take larger ones or a smaller grid"
        )
    cut = images[:, :, : grid * height, : grid * width]
    size, channels = images.shape[:2]
    rows = cut.reshape(size, channels, grid, height, grid, width)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


class Jigsaw(Objective):
    """Jigsaw puzzles.

    Args:
        task: what it is told.
        grid: tiles in a row, and rows.
        permutations: P.
        hidden: width of the hidden layer of g (paper: 4096).

    Attributes:
        orders: (P, T), pi: which tile lies at each place; the data lay tiles by it.
    """

    sees = TilesBatch

    def __init__(
        self, task: Task, *, grid: int = 3, permutations: int = 64, hidden: int = 256
    ) -> None:
        super().__init__(task)
        self.grid, self.permutations, self.hidden = grid, permutations, hidden
        check_settings(self, grid=at_least(2), hidden=at_least(1))
        self.orders = distant_permutations(grid**2, permutations)
        width = require(task.network, Backbone, "jigsaw").width
        self.head = nn.Sequential(
            nn.Linear(grid**2 * width, hidden), nn.ReLU(), nn.Linear(hidden, permutations)
        )

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, the share of hits ``pretext_top1``, and ``feature_std``."""
        pieces = tiles(batch.images, self.grid)
        features = require(network, Backbone, "jigsaw").features(pieces.flatten(0, 1))
        together = features.unflatten(0, pieces.shape[:2]).flatten(1)  # (N, T width)
        logits, labels = gather(at_least_float32(self.head(together))), gather(batch.labels)
        return {
            "loss": F.cross_entropy(logits, labels),
            "pretext_top1": (logits.detach().argmax(1) == labels).float().mean(),
            "feature_std": feature_std(features),
        }
