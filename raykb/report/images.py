"""Pictures of images."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

_FRAME = 204  # light grey, between white paper and images that are white at their border


def image_columns(columns: Mapping[str, Tensor]) -> Figure:
    """Draw titled columns of images, uint8 (N, C, H, W) each, one or three channels.

    A column is one image to matplotlib, which takes as long for each as for a diagram.
    """
    rows = len(next(iter(columns.values())))
    size = (1.15 * len(columns), 1.15 * rows + 0.85)  # inches
    figure = Figure(figsize=size, layout="compressed")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for panel, (title, images) in zip(panels, columns.items(), strict=True):
        panel.set_title(title, fontsize=6.5, verticalalignment="bottom")
        panel.imshow(stacked(images), cmap="gray", vmin=0, vmax=255)
        panel.set_axis_off()
    return figure


def stacked(images: Tensor) -> np.ndarray:
    """Return images (N, C, H, W) in frames of a pixel, one above the other: (N (H + 2), W + 2, C).

    The axis of channels goes where there is but one, as matplotlib has it.
    """
    framed = F.pad(images, (1, 1, 1, 1), value=_FRAME).movedim(1, -1)
    column: np.ndarray = framed.flatten(0, 1).squeeze(-1).cpu().numpy()
    return column
