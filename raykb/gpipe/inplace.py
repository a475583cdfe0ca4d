"""Changes in place: what a part overwrites, and a skip of an earlier part must not be.

On one device a tensor and the skip that it was stashed as are one memory. On several they are two,
so what a later part writes into the tensor would reach the skip here and not there.
"""

import torch
from torch import Tensor

from raykb.parts.skip import SkipKey


def version(tensor: Tensor) -> int:
    """Return how often a tensor's memory was changed in place; nobody counts in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether a change of one tensor in place may change the other."""
    if one.layout != torch.strided or other.layout != torch.strided:
        return one is other
    return one.untyped_storage() is other.untyped_storage()


def skip_overwritten(where: str, key: SkipKey) -> str:
    """Return what is wrong with a part that changes what a skip of an earlier part also is."""
    return (
        f"{where} changes skip {key[1]!r} in place after an earlier one stashed it, which would "
        "not reach the skip on another device, nor its gradient; make that operation out of place "
        "(inplace=False), or stash a clone"
    )
