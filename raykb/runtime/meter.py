"""What a training costs the process that runs it: seconds, CPU seconds and memory."""

import contextlib
import os
import re
import resource
import time
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_MIB = 2**20


class Meter:
    """Counts from its making on.

    Memory at its peak is that of the GPU where there is one, else what the process had resident,
    libraries and data included. A process that has run other trainings starts anew where Linux
    lets it; where not, the most that it has ever had counts.

    Args:
        device: of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # not every container lets it
                (_PROCESS / "clear_refs").write_text("5")  # the peak, of what proc(5) names

    def seconds(self) -> float:
        """Return the seconds by the clock."""
        return time.perf_counter() - self._wall

    def figures(self) -> dict[str, float]:
        """Return ``time/wall_s``, ``time/cpu_s`` and ``memory/peak_mib``; on a GPU ``time/gpu_s``.

        CPU seconds are those of this process and of the children of it that have ended; GPU seconds
        are those for which the training had its GPU, at work or not.
        """
        on_gpu = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if on_gpu else _peak_resident()
        wall = self.seconds()
        return {
            "time/wall_s": wall,
            "time/cpu_s": _cpu_seconds() - self._cpu,
            **({"time/gpu_s": wall} if on_gpu else {}),
            "memory/peak_mib": peak / _MIB,
        }


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def _peak_resident() -> int:
    """Return bytes; the kernel's file has the peak since the reset, getrusage may have another."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
