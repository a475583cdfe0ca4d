"""Heads that stand on a network's features."""

from collections.abc import Sequence

from torch import nn

from raykb.parts.batch_norm import BatchNorm


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


def normalised_head(widths: Sequence[int], *, last_norm: bool = False) -> nn.Sequential:
    """Return linear layers with batch norm and ReLU between them, from the first width to the last.

    Batch norm is that of all ranks' rows, so ranks that share a batch project it as one would.

    Args:
        widths: of what comes in, of each hidden layer, and of what comes out.
        last_norm: whether what comes out is normalised, too, without scale and shift.

    Raises:
        ValueError: there are less than two widths, or one is below 1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths: {list(widths)}, must be at least two, each at least 1")
    *hidden, outputs = widths[1:]
    layers: list[nn.Module] = []
    for before, width in zip(widths, hidden, strict=False):
        layers += [nn.Linear(before, width, bias=False), BatchNorm(width), nn.ReLU()]
    layers.append(nn.Linear(widths[-2], outputs, bias=not last_norm))
    if last_norm:
        layers.append(BatchNorm(outputs, affine=False))
    return nn.Sequential(*layers)
