"""Make the C library keep freed memory: what a training frees it asks for again at once.

By default glibc returns large blocks to the system when they are freed. Each step then takes its
activations anew, page by page, and the faults cost as much as the arithmetic: a forward pass of
500 small images on one core took 0.26 s with them and 0.11 s without, on the machine of README's
figures. The price is that a process holds on to the most that it has ever needed.
"""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt, in <malloc.h>


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed; return whether there is one to tell."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    settings = {_TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 1 << 26, _MMAP_THRESHOLD: 1 << 25}
    return all(mallopt(option, value) for option, value in settings.items())
