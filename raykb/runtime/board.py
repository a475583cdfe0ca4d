"""Where a process says what it is at, and another one sees it; it imports next to nothing."""

import mmap
import signal
import struct

HUNG = "hung"
"""The folder of a run directory with what hung and where."""

STACKS_SIGNAL = signal.SIGUSR2
"""Has a watched process write the stacks of its threads, whatever it is at."""

_FORM = struct.Struct("<Qd400s")  # signs of life, seconds until the next, what the process is at
SIZE = _FORM.size


class Board:
    """What a process is at; nobody waits for anything here.

    Args:
        descriptor: of a file in memory, of :data:`SIZE` bytes; -1 for what nobody else sees.
    """

    def __init__(self, descriptor: int = -1) -> None:
        self._memory = mmap.mmap(descriptor, SIZE)
        self._signs = 0

    def write(self, limit_s: float, what: str) -> None:
        """Give a sign of life, and say for how many seconds it is good, and of what it is."""
        self._signs += 1
        _FORM.pack_into(self._memory, 0, self._signs, limit_s, what.encode())

    def read(self) -> tuple[int, float, str]:
        """Return the number of signs, for how many seconds the last is good, and of what it is."""
        signs, limit_s, what = _FORM.unpack_from(self._memory)
        return signs, limit_s, what.rstrip(b"\0").decode(errors="replace")
