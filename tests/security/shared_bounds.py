"""What a block may take, measured where it counts: bytes that this process has resident."""

import contextlib
import ctypes
import re
from pathlib import Path

import pytest

MIB = 2**20


def _status(name):
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@contextlib.contextmanager
def at_most(more_bytes):
    """Fail if the block has more resident bytes at its peak than before it, but for these."""
    ctypes.CDLL(None).malloc_trim(0)  # else it may take what earlier tests have freed, unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError as error:
        pytest.skip(f"the peak of this process's memory cannot be measured here: {error}")
    before = _status("VmRSS")
    yield
    assert _status("VmHWM") - before < more_bytes
