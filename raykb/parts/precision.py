"""Where half precision is not enough."""

from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return half-precision values as float32, for sums, logarithms and thresholds; others as is.

    A probability of 0.9485 is 0.9492 in bfloat16, as is a threshold of 0.95.
    """
    return values.float() if values.itemsize < 4 else values
