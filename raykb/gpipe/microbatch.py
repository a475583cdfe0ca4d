"""A mini-batch in micro-batches: cut along the first dimension, and put together again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raykb.gpipe.partition import Value, is_value
from raykb.gpipe.probe import as_tuple


def check(value: Any, what: str = "input") -> None:
    """Raise TypeError unless ``value`` is a tensor or a flat tuple of tensors.

    Args:
        value: what goes into a model, or comes out of it.
        what: how the message calls it.
    """
    if is_value(value):
        return
    kind = type(value).__name__
    if isinstance(value, tuple):
        others = [type(part).__name__ for part in value if not isinstance(part, Tensor)]
        kind = "a tuple with " + (", ".join(others) or "nothing")
    raise TypeError(f"{what}: {kind}, must be a tensor or a flat tuple of tensors")


def scatter(value: Value, chunks: int) -> list[Value]:
    """Cut a mini-batch along its first dimension, each tensor as ``Tensor.chunk`` cuts it.

    ``chunks`` is an upper bound: 6 samples in 4 chunks are three micro-batches of 2.

    Raises:
        ValueError: tensors of a tuple do not have the same number of micro-batches.
    """
    if isinstance(value, Tensor):
        return list(value.chunk(chunks))
    pieces = [tensor.chunk(chunks) for tensor in value]
    counts = [len(cut) for cut in pieces]
    if len(set(counts)) > 1:
        raise ValueError(
            f"input: tensors of {[len(tensor) for tensor in value]} samples give {counts} "
            "micro-batches; all tensors of a batch must have as many samples"
        )
    return list(zip(*pieces, strict=True))


def gather(values: Sequence[Value]) -> Value:
    """Concatenate micro-batches along their first dimension, each place of a tuple by itself."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([as_tuple(value)[0] for value in values])
    rows = zip(*(as_tuple(value) for value in values), strict=True)
    return tuple(torch.cat(row) for row in rows)
