"""CutMix with a box for each image, the batch at once against image by image.

    python tests/benchmarks/bench_cutmix.py

``cutmix(per_sample=True)`` against two loops over the images: torchvision's own ``v2.CutMix`` of
each image and its partner, and what the official code does to a batch done to each image (a draw of
lambda, a box, slices that are copied, in numpy where that is faster). In turns, ten calls each, by
the CPU seconds of one thread: the median of the ratios, and their range.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from raykb.engine.memory import keep_freed_memory
from raykb.engine.seeding import generator
from raykb.recognition.cutmix import cutmix


def by_torchvision(images: Tensor, labels: Tensor, mix: v2.CutMix) -> tuple[Tensor, Tensor]:
    """Return mixed images and soft targets: an image is mixed with the one it is stacked on."""
    found = [
        mix(images[[place, partner]], labels[[place, partner]])
        for place, partner in enumerate(torch.randperm(len(images)).tolist())
    ]
    pictures, targets = zip(*found, strict=True)
    return torch.stack([pair[0] for pair in pictures]), torch.stack([pair[0] for pair in targets])


def by_slices(
    images: Tensor, labels: Tensor, dice: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what ``cutmix`` returns, made as the official code makes it, an image at a time."""
    height, width = images.shape[2:]
    partners = dice.permutation(len(images))
    mixed, kept = images.clone(), torch.empty(len(images))
    for place, partner in enumerate(partners):
        lam = dice.beta(1.0, 1.0)
        cut = np.sqrt(1.0 - lam)
        half_y, half_x = int(height * cut) // 2, int(width * cut) // 2
        y, x = int(dice.integers(height)), int(dice.integers(width))
        y1, y2 = max(y - half_y, 0), min(y + half_y, height)
        x1, x2 = max(x - half_x, 0), min(x + half_x, width)
        mixed[place, :, y1:y2, x1:x2] = images[partner, :, y1:y2, x1:x2]
        kept[place] = 1.0 - (y2 - y1) * (x2 - x1) / (height * width)
    return mixed, labels, labels[torch.from_numpy(partners)], kept


def cpu_ms(work: Callable[[], object], calls: int = 10) -> float:
    """Return the CPU milliseconds of a call."""
    start = time.process_time()
    for _ in range(calls):
        work()
    return 1e3 * (time.process_time() - start) / calls


def measured(channels: int, side: int, batch: int, repeats: int) -> list[str]:
    """Return a line of what each took."""
    images = torch.randn(batch, channels, side, side, generator=generator(0))
    labels, numbers, dice = torch.arange(batch) % 10, generator(1), np.random.default_rng(1)
    mix = v2.CutMix(num_classes=10)
    work = {
        "at once": lambda: cutmix(
            images, labels, numbers, probability=1.0, alpha=1.0, per_sample=True
        ),
        "torchvision": lambda: by_torchvision(images, labels, mix),
        "slices": lambda: by_slices(images, labels, dice),
    }
    times = [{name: cpu_ms(call) for name, call in work.items()} for _ in range(repeats + 2)][2:]
    ours = statistics.median(row["at once"] for row in times)
    lines = [f"{channels} x {side} x {side}: {ours:.2f} ms at once"]
    for rival in ("torchvision", "slices"):
        ratios = sorted(row[rival] / row["at once"] for row in times)
        took = statistics.median(row[rival] for row in times)
        spread = f"{statistics.median(ratios):.1f} x ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        lines.append(f"  {rival}: {took:.2f} ms, {spread}")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--repeats", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a worker that trains does
    print(f"{platform.machine()}, torch {torch.__version__}, {given.batch} images")
    for channels, side in ((1, 28), (3, 32)):
        print("\n".join(measured(channels, side, given.batch, given.repeats)))


if __name__ == "__main__":
    main()
