"""What the pipeline's benchmarks share: processes side by side, and variants timed in turn."""

import datetime
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from raykb.engine.memory import keep_freed_memory


@dataclass(frozen=True)
class Variant:
    """One way of doing the work: ``run`` is timed, ``before`` is not."""

    run: Callable[[], object]
    before: Callable[[], object]
    threads: int = 1


def launch(function: Callable[..., Any], size: int, *arguments: Any) -> Any:
    """Return what ``function(rank, *arguments)`` returns on rank 0 of so many processes."""
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (function, size, f"{folder}/store", queue, arguments)
        processes = multiprocessing.start_processes(_serve, given, nprocs=size, join=False)
        while not processes.join(timeout=1.0):
            pass
    return queue.get()


def _serve(rank, function, size, store, queue, arguments):
    torch.set_num_threads(1)
    keep_freed_memory()  # as every worker of raykb does; the rivals run in the same processes
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=Path(store).as_uri(),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(minutes=5),
    )
    value = function(rank, *arguments)
    dist.barrier()
    if rank == 0:
        queue.put(value)
    dist.destroy_process_group()


def interleaved(
    variants: Mapping[str, Variant],
    repeats: int,
    after: Callable[[str, float], object] = lambda name, took: None,
) -> dict[str, list[float]]:
    """Return the seconds of each variant, from a barrier of all processes to the next.

    They take turns. Each turn is two runs, of which the second counts: as in a training, what is
    in the caches is a variant's own. ``after`` is told the name and the seconds of the second.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            _timed(variant)
            seconds[name].append(_timed(variant))
            after(name, seconds[name][-1])
    return seconds


def _timed(variant):
    variant.before()
    torch.set_num_threads(variant.threads)
    dist.barrier()
    start = time.perf_counter()
    variant.run()
    dist.barrier()
    took = time.perf_counter() - start
    torch.set_num_threads(1)
    return took


def both(seconds: list[float]) -> str:
    """Return minimum and median in milliseconds."""
    return f"{1e3 * min(seconds):.1f} ({1e3 * statistics.median(seconds):.1f})"


def machine(*packages: str) -> str:
    """Return hardware, versions, date and how busy the machine is, in a line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    parts = [f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    parts += [f"{package} {_version(package)}" for package in packages]
    parts.append(f"{datetime.date.today():%d %B %Y}".lstrip("0"))
    parts.append(f"load of others before {os.getloadavg()[0]:.1f}")
    return ", ".join(parts)


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
