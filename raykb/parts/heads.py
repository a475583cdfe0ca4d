"""Heads that stand on a network's features."""

from torch import nn


def projection_head(
    inputs: int, outputs: int = 64, *, hidden: int | None = None, negative_slope: float = 0.1
) -> nn.Sequential:
    """Return a linear layer, leaky ReLU and a linear layer, from (N, inputs) to (N, outputs).

    It has no batch norm, so a sample's projection does not depend on its batch.

    Args:
        inputs: width of the features.
        outputs: width of the projections.
        hidden: width between the layers; None for ``inputs``.
        negative_slope: of the leaky ReLU.

    Raises:
        ValueError: a width is below 1.
    """
    between = inputs if hidden is None else hidden
    if min(inputs, outputs, between) < 1:
        raise ValueError(
            f"inputs={inputs}, outputs={outputs}, hidden={hidden}: widths must be at least 1"
        )
    return nn.Sequential(
        nn.Linear(inputs, between),
        nn.LeakyReLU(negative_slope),
        nn.Linear(between, outputs),
    )
