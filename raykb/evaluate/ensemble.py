"""What several networks say of a volume together: the mean of their probabilities (nnU-Net)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from raykb.evaluate.sliding_window import SlidingWindow


@torch.inference_mode()
def mean_probabilities(
    networks: Iterable[nn.Module], image: Tensor, window: SlidingWindow, device: torch.device
) -> Tensor:
    """Return the mean over networks of the softmax of their logits, (K, …), where these are.

    Args:
        networks: each is asked for when its turn comes, and let go of then.
        image: (C, …), on any device.
        window: how a volume goes through a network.
        device: of the networks, which are put there and into evaluation mode.

    Raises:
        ValueError: there is no network, or they are of different classes.
    """
    mean: Tensor | None = None
    for count, network in enumerate(networks, 1):
        own = window.logits(network.to(device).eval(), image, device).float().softmax(0)
        if mean is not None and mean.shape != own.shape:
            raise ValueError(
                f"networks: of {len(mean)} and {len(own)} classes, must be of the same"
            )
        mean = own if mean is None else mean.lerp_(own, 1 / count)
    if mean is None:
        raise ValueError("networks: none, must be at least one")
    return mean
