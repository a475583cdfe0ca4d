"""A step of SAOL against one of cross entropy on the plain network, and where the difference goes.

    python tests/benchmarks/bench_saol.py

Forward and backward of one batch: the plain backbone by cross entropy, SAOL on it where nothing is
pasted, so that donors do not pass, and where every image is mixed. The three take turns, by the CPU
seconds of one thread: the median of the ratios, and their range.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from raykb.engine.assemble import filled
from raykb.engine.memory import keep_freed_memory
from raykb.engine.objective import Objective, Task
from raykb.engine.seeding import generator
from raykb.models import MODELS
from raykb.recognition import METHODS, MIXINGS
from raykb.recognition.mixed_feed import mixed_fields

CLASSES = 10
NETWORKS: list[tuple[str, dict[str, int], tuple[int, int, int]]] = [
    ("small_convnet", {"grid": 1}, (1, 28, 28)),
    ("small_convnet", {"grid": 1}, (1, 42, 42)),
    ("wide_resnet", {"depth": 10, "width": 1}, (3, 32, 32)),
]


def step(model: dict[str, Any], channels: int, method: str, batch: Any) -> Callable[[], None]:
    """Return a function that passes a batch forward and backward."""
    torch.manual_seed(0)
    network = MODELS[model.pop("name")](CLASSES, channels, **model)
    objective: Objective = METHODS[method](Task(network, 1, CLASSES))
    fields = filled(objective, batch)

    def passed() -> None:
        objective(network, fields, 0)["loss"].backward()

    return passed


def cpu_ms(work: Callable[[], object], calls: int = 5) -> float:
    """Return the CPU milliseconds of a call."""
    start = time.process_time()
    for _ in range(calls):
        work()
    return 1e3 * (time.process_time() - start) / calls


def measured(
    name: str, options: dict[str, int], shape: tuple[int, int, int], batch: int, repeats: int
) -> list[str]:
    """Return a line of what each took."""
    images, labels = torch.randn(batch, *shape, generator=generator(0)), torch.arange(batch)
    fields = {"images": images, "labels": labels % CLASSES}
    plain, mixed = (
        mixed_fields(fields, MIXINGS["cutmix"](probability=p).draw(images, generator(1)), CLASSES)
        for p in (0.0, 1.0)
    )
    attentive = {"name": "spatially_attentive", "backbone": name, "options": options}
    work = {
        "cross entropy": step({"name": name} | options, shape[0], "cross_entropy", mixed),
        "saol, nothing pasted": step(attentive.copy(), shape[0], "saol", plain),
        "saol, all mixed": step(attentive.copy(), shape[0], "saol", mixed),
    }
    times = [{name: cpu_ms(call) for name, call in work.items()} for _ in range(repeats + 2)][2:]
    lines = [f"{name} {options}, {' x '.join(map(str, shape))}"]
    for rival in work:
        ratios = sorted(row[rival] / row["cross entropy"] for row in times)
        took = statistics.median(row[rival] for row in times)
        spread = f"{statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(f"  {rival}: {took:.1f} ms, {spread}")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a worker that trains does
    print(f"{platform.machine()}, torch {torch.__version__}, {given.batch} images")
    for name, options, shape in NETWORKS:
        print("\n".join(measured(name, options, shape, given.batch, given.repeats)))


if __name__ == "__main__":
    main()
