"""Modes that belong to a thread: taken along to other threads, and to backward passes."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch

Modes = Callable[[], contextlib.AbstractContextManager[None]]
"""Makes contexts with the modes of an earlier moment."""


def caller_autocast(device_types: Iterable[str]) -> Modes:
    """Return what makes contexts with the calling thread's autocast settings of this moment.

    Args:
        device_types: whose settings are taken along; those of the CPU always are.
    """
    cache = torch.is_autocast_cache_enabled()
    settings = [
        (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache)
        for kind in sorted({"cpu", *device_types})
        if torch.amp.is_autocast_available(kind)
    ]

    @contextlib.contextmanager
    def restored() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for setting in settings:
                stack.enter_context(torch.autocast(*setting))
            yield

    return restored


def caller_modes(device_types: Iterable[str]) -> Modes:
    """Return what makes contexts with the calling thread's gradient mode and autocast settings."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = caller_autocast(device_types)

    @contextlib.contextmanager
    def restored() -> Iterator[None]:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad), autocast():
            yield

    return restored


def precision(
    device_type: str, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """Return a context of automatic mixed precision in ``dtype``, or of full precision for None.

    Where that changes nothing it does nothing: torch's context takes as long as a small layer.
    """
    if dtype is None and not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, dtype, dtype is not None)
