"""Keeping freed memory is a setting of the C library, and changes no result."""

import subprocess
import sys

from raykb.engine.memory import keep_freed_memory

FAULTS = """
import resource, sys, torch
from raykb.engine.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.ones(4 * 2**20)  # the first use grows the heap
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
total = sum(float(torch.full((4 * 2**20,), 0.5).sum()) for _ in range(50))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, total)
"""


def faults(word):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True
    )
    count, total = done.stdout.split()
    return int(count), float(total)


def test_freed_memory_is_used_again_without_page_faults():
    assert keep_freed_memory() is True
    (many, total), (few, same) = faults("default"), faults("keep")
    assert total == same
    assert few < many / 3
