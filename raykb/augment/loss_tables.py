"""Tables of what a frozen network makes of every transformation, a piece for each chunk of images.

    train   hard inputs ─▶ 12 candidates ─▶ f ─▶ losses (M, 12), thumbnails (M, C, h, w)
    test    corrupted ─▶ 12 candidates, flip, five crops ─▶ f ─▶ probabilities (N, 18, K)

A piece is made once, by any worker, and depends on network, images, settings and seed alone.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.augment.hard_inputs import Hardening
from raykb.data.candidates import CANDIDATES, CROPS, FLIP, views
from raykb.data.corruptions import corrupted
from raykb.data.images import ImageSet
from raykb.data.views import ImageView
from raykb.engine.foreign import check_archive

Arrays = dict[str, np.ndarray]
NAMES = tuple(CANDIDATES)
BASELINES = {
    "autocontrast": (NAMES.index("c"),),
    "flip": (NAMES.index("n"), len(NAMES)),
    "five_crops": tuple(range(len(NAMES) + 1, len(NAMES) + 1 + len(CROPS))),
}
"""Columns of a test table whose mean is a rival that needs no predictor."""
_ROWS = 64  # images whose views are in memory at once


@dataclass(frozen=True, kw_only=True)
class Target:
    """The network whose losses are predicted, as it is sent to the workers.

    Attributes:
        network: builds it, without weights.
        state: its weights.
        view: its plain form is what the network takes.
        device: where it runs.
        threads: of torch.
    """

    network: Callable[[], nn.Module]
    state: Mapping[str, Tensor]
    view: ImageView
    device: str = "cpu"
    threads: int = 1

    @property
    def key(self) -> str:
        """What stands for its weights."""
        digest = hashlib.sha256()
        for name, value in self.state.items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def built(self) -> nn.Module:
        """Return the network, frozen and in evaluation mode."""
        torch.set_num_threads(self.threads)
        network = self.network()
        network.load_state_dict(self.state)
        return network.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def log_probabilities(
        self, network: nn.Module, images: Tensor, transformations: Sequence[Any]
    ) -> Tensor:
        """Return log softmax f(t_a(x)), (N, A, K) on the CPU, of images (N, C, H, W) uint8."""
        found = []
        for part in images.split(_ROWS):
            seen = views(part.to(self.device), transformations)
            logits = network(self.view.plain(seen.flatten(0, 1))).float()
            found.append(logits.log_softmax(1).unflatten(0, seen.shape[:2]).cpu())
        return torch.cat(found)


def thumbnails(images: Tensor, side: int) -> Tensor:
    """Return images (N, C, H, W) uint8 of ``side`` pixels, by bicubic interpolation."""
    if images.shape[2:] == (side, side):
        return images
    small = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    return small.round_().clamp_(0, 255).to(torch.uint8)


def losses_piece(
    target: Target, images: ImageSet, hardening: Hardening, *, side: int, seed: int
) -> bytes:
    """Return losses and thumbnails of the hard inputs of some images, as a file.

    Args:
        target: f.
        images: N of them.
        hardening: makes the inputs, ``samples`` of each image, which follow one another.
        side: of the thumbnails, in pixels.
        seed: of the inputs.
    """
    hard = hardening(torch.from_numpy(images.images), images.ids, seed).flatten(0, 1)
    labels = torch.from_numpy(images.labels).repeat_interleave(hardening.samples)
    made = target.log_probabilities(target.built(), hard, list(CANDIDATES.values()))
    losses = -made.gather(2, labels[:, None, None].expand(-1, made.shape[1], 1))[..., 0]
    return encoded({"losses": losses.numpy(), "thumbnails": thumbnails(hard, side).numpy()})


def views_piece(
    target: Target, images: ImageSet, corruption: str, severity: int, *, side: int, seed: int
) -> bytes:
    """Return probabilities of all views, thumbnails and labels of corrupted images, as a file.

    Args:
        target: f.
        images: N of them.
        corruption: its name; ``clean`` for none.
        severity: from 1 to 5.
        side: of the thumbnails, in pixels.
        seed: of the corruption.
    """
    seen = torch.from_numpy(images.images)
    if corruption != "clean":
        seen = corrupted(seen, corruption, severity, ids=images.ids, seed=seed)
    transformations = [*CANDIDATES.values(), *FLIP.values(), *CROPS.values()]
    made = target.log_probabilities(target.built(), seen, transformations).exp()
    small = thumbnails(seen, side).numpy()
    arrays = {"probabilities": made.numpy().astype(np.float16), "thumbnails": small}
    return encoded(arrays | {"labels": images.labels})


def encoded(arrays: Arrays) -> bytes:
    """Return arrays as a file ``.npz``."""
    file, own = io.BytesIO(), dict[str, Any](arrays)
    np.savez(file, **own)
    return file.getvalue()


def joined(pieces: Iterable[bytes]) -> Arrays:
    """Return the arrays of files one after another."""
    read = []
    for piece in pieces:
        check_archive(piece)
        with np.load(io.BytesIO(piece), allow_pickle=False) as arrays:
            read.append(dict(arrays))
    return {name: np.concatenate([each[name] for each in read]) for name in read[0]}
