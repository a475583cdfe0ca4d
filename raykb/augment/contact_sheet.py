"""What a policy does, to look at."""

from matplotlib.figure import Figure
from torch import Tensor

from raykb.augment.policy import Policy
from raykb.engine.seeding import generator


def contact_sheet(policy: Policy, images: Tensor, *, columns: int = 8, seed: int = 0) -> Figure:
    """Draw what a policy does: a row for each image, a column for each sub-policy.

    Every operation fires, so that each column shows its sub-policy at work; the titles give the
    probability and level of its operations. The first column holds the images as they are.

    Args:
        policy: the policy to look at; its first ``columns`` sub-policies are drawn.
        images: uint8 (N, C, H, W), a handful.
        columns: sub-policies at most.
        seed: of the signs and of the centres of Cutout.
    """
    shown = policy.sub_policies[:columns]
    stream = generator(seed, "contact_sheet")
    batches, titles = [images], ["original"]
    for sub_policy in shown:
        certain = Policy([[(name, 1.0, level) for name, _, level in sub_policy]])
        batches.append(certain.apply(images, stream))
        titles.append("\n".join(f"{name}\np {p:.2f}, level {lv:.2f}" for name, p, lv in sub_policy))
    size = (1.15 * len(batches), 1.15 * len(images) + 0.75)  # inches
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(len(images), len(batches), squeeze=False)
    for column, (batch, title) in enumerate(zip(batches, titles, strict=True)):
        axes[0, column].set_title(title, fontsize=6.5, verticalalignment="bottom")
        for panel, image in zip(axes[:, column], batch.movedim(1, -1).cpu(), strict=True):
            panel.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color="0.8", linewidth=0.5)
    return figure
