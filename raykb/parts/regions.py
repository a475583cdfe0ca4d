"""What maps say of a region of an image: their mean in a box."""

import torch
from torch import Tensor

from raykb.later import Later

operations = Later("torchvision.ops")


def regions(maps: Tensor, boxes: Tensor, size: int, *, aligned: bool = False) -> Tensor:
    """Return the mean of maps in boxes, (N, K, D), by RoI align.

    Args:
        maps: (N, D, h, w) of square views.
        boxes: (N, K, 4): left, top, right, bottom in pixels.
        size: side of the views in pixels.
        aligned: whether the value of a cell is that of its middle; if not, of its upper left.
    """
    images = torch.arange(len(maps), device=maps.device)
    images = images.repeat_interleave(boxes.shape[1]).to(boxes)[:, None]
    pooled: Tensor = operations.roi_align(
        maps,
        torch.cat([images, boxes.flatten(0, 1)], 1).to(maps),  # (N K, 5)
        output_size=1,
        spatial_scale=maps.shape[3] / size,
        sampling_ratio=-1,
        aligned=aligned,
    )
    by_image: Tensor = pooled.flatten(1).unflatten(0, boxes.shape[:2])
    return by_image
