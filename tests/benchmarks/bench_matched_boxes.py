"""Boxes of the same regions in two views, of a batch at once against one by one.

    python tests/benchmarks/bench_matched_boxes.py

``matched_boxes`` with the keyed numbers of a training, and the loop of the paper's description in
plain Python with ``random``'s numbers, of 256 images with ten boxes each in views of 224 pixels;
in turns, by the CPU seconds of one thread: the median of the ratios, and their range.
"""

import argparse
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "selfsup"))

import numpy as np
import torch
from plain_boxes import plain_boxes

from raykb.data.box_views import parts_seen
from raykb.data.crops import RandomCrops
from raykb.engine.memory import keep_freed_memory
from raykb.engine.seeding import keyed_uniform, stream_seed
from raykb.parts.matched_boxes import matched_boxes

SIZE, HEIGHT, WIDTH = 224, 375, 500
CROPS = RandomCrops(scale=(0.2, 1.0))  # the paper's


def cpu_ms(work: Callable[[], object]) -> float:
    """Return the CPU milliseconds of a call."""
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def measured(batch: int, repeats: int, *, grid: bool) -> str:
    """Return a line of what both took."""
    ids, images = np.arange(batch), torch.empty(batch, 3, HEIGHT, WIDTH, device="meta")
    crops, mirrored = parts_seen(CROPS, images, ids, seed=0, epoch=0)
    by_image, flips = crops.tolist(), mirrored.tolist()
    dice = random.Random(0)

    def draw(name: str, rows: np.ndarray, count: int) -> np.ndarray:
        return keyed_uniform(stream_seed(0, name, 0), ids[rows], count).numpy()

    times = [
        (
            cpu_ms(lambda: matched_boxes(crops, mirrored, SIZE, draw, grid=grid)),
            cpu_ms(
                lambda: plain_boxes(
                    by_image, flips, SIZE, lambda *_: (dice.randint, dice.uniform), grid=grid
                )
            ),
        )
        for _ in range(repeats + 1)
    ][1:]  # the first one warms up
    ratios = sorted(plain / at_once for at_once, plain in times)
    ours, plain = (statistics.median(column) for column in zip(*times, strict=True))
    return (
        f"{'grid' if grid else 'plain'} drawing: {ours:.1f} ms against {plain:.1f} ms, "
        f"{statistics.median(ratios):.1f} x ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    )


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
    for grid in (True, False):
        print(measured(given.batch, given.repeats, grid=grid))


if __name__ == "__main__":
    main()
