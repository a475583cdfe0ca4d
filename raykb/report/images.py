"""Pictures of images."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor


def image_columns(columns: Mapping[str, Tensor]) -> Figure:
    """Draw titled columns of images, uint8 (N, C, H, W) each, one or three channels."""
    rows = len(next(iter(columns.values())))
    size = (1.15 * len(columns), 1.15 * rows + 0.85)  # inches
    figure = Figure(figsize=size, layout="compressed")
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, images) in zip(panels.T, columns.items(), strict=True):
        column[0].set_title(title, fontsize=6.5, verticalalignment="bottom")
        for panel, image in zip(column, images.movedim(1, -1).cpu(), strict=True):
            panel.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color="0.8", linewidth=0.5)
    return figure
