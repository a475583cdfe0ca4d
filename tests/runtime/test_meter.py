"""What a training costs its process is counted from its own beginning on."""

import subprocess
import sys
import time

import numpy as np
import torch

from raykb.runtime import meter
from raykb.runtime.meter import Meter

CPU = torch.device("cpu")
MIB = 2**20


def busy(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_cpu_seconds_are_those_of_the_process_and_of_children_that_ended():
    busy(0.05)
    metered = Meter(CPU)
    assert metered.figures()["time/cpu_s"] < 0.05  # what was before is not in it
    busy(0.05)
    own = metered.figures()["time/cpu_s"]
    assert own >= 0.03  # the kernel counts in hundredths
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
    assert metered.figures()["time/cpu_s"] > own
    assert metered.figures()["time/wall_s"] >= 0.05


def test_the_peak_of_memory_is_that_since_the_beginning():
    metered = Meter(CPU)
    before = metered.figures()["memory/peak_mib"]
    large = np.ones(256 * MIB, np.uint8)  # so large a block goes back when it is freed
    del large
    assert metered.figures()["memory/peak_mib"] > before + 200
    assert Meter(CPU).figures()["memory/peak_mib"] < before + 100


def test_seconds_on_a_gpu_are_those_for_which_the_training_had_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * MIB)
    figures = Meter(torch.device("cuda")).figures()
    assert figures["time/gpu_s"] == figures["time/wall_s"] > 0
    assert figures["memory/peak_mib"] == 3
    assert "time/gpu_s" not in Meter(CPU).figures()


def test_where_the_kernel_has_no_such_files_the_peak_is_that_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(meter, "_PROCESS", tmp_path / "none")
    assert Meter(CPU).figures()["memory/peak_mib"] > 10
