"""Keeping freed memory is a setting of the C library, and changes no result."""

import subprocess
import sys

FAULTS = """
import resource, sys, torch
from raykb.engine.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
torch.manual_seed(0)
convolutions = [torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3)]
network, images = torch.nn.Sequential(*convolutions), torch.rand(400, 3, 32, 32)
images = images.contiguous(memory_format=torch.channels_last)
with torch.inference_mode():
    network(images)  # the first use grows the heap
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    total = sum(float(network(images).sum()) for _ in range(5))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, total)
"""


def begun(word):
    return subprocess.Popen([sys.executable, "-c", FAULTS, word], stdout=subprocess.PIPE, text=True)


def faults(process):
    count, total = process.communicate()[0].split()
    return int(count), float(total)


def test_freed_memory_is_used_again_with_fewer_page_faults_and_the_same_result():
    (many, total), (few, same) = map(faults, [begun("default"), begun("keep")])
    assert total == same
    assert few < many / 2
