"""Boxes of the same regions in two views, of a batch at once against one by one.

    python tests/benchmarks/bench_matched_boxes.py

``matched_boxes`` with the keyed numbers of a training, and the loop of the paper's description in
plain Python with ``random``'s numbers, of 256 images with ten boxes each in views of 224 pixels;
in turns of five batches, by the CPU seconds of one thread: the median of the ratios, and their
range.
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
IN_A_ROW = 5  # batches
CROPS = RandomCrops(scale=(0.2, 1.0))  # the paper's


def cpu_ms(work: Callable[[int], object], turns: range) -> float:
    """Return the CPU milliseconds of a call, of some in a row."""
    start = time.process_time()
    for turn in turns:
        work(turn)
    return 1e3 * (time.process_time() - start) / len(turns)


def measured(batch: int, repeats: int, *, grid: bool) -> str:
    """Return a line of what both took."""
    images = torch.empty(batch, 3, HEIGHT, WIDTH, device="meta")
    ids = np.arange(IN_A_ROW * batch).reshape(IN_A_ROW, batch)
    parts = [parts_seen(CROPS, images, own, seed=0, epoch=0) for own in ids]
    plain_parts = [(crops.tolist(), mirrored.tolist()) for crops, mirrored in parts]
    dice = random.Random(0)

    def at_once(turn: int) -> object:
        def draw(name: str, rows: np.ndarray, count: int) -> np.ndarray:
            return keyed_uniform(stream_seed(0, name, 0), ids[turn][rows], count).numpy()

        return matched_boxes(*parts[turn], SIZE, draw, grid=grid)

    def one_by_one(turn: int) -> object:
        given = (dice.randint, dice.uniform)
        return plain_boxes(*plain_parts[turn], SIZE, lambda *_: given, grid=grid)

    turns = range(IN_A_ROW)
    times = [(cpu_ms(at_once, turns), cpu_ms(one_by_one, turns)) for _ in range(repeats + 1)]
    ours, plain = zip(*times[1:], strict=True)  # the first ones warm up
    ratios = sorted(b / a for a, b in zip(ours, plain, strict=True))
    return (
        f"{'grid' if grid else 'plain'} drawing: {statistics.median(ours):.1f} ms against "
        f"{statistics.median(plain):.1f} ms, {statistics.median(ratios):.1f} x ({ratios[0]:.1f} to "
        f"{ratios[-1]:.1f})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--repeats", type=int, default=11)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a worker that trains does
    print(f"{platform.machine()}, torch {torch.__version__}, {given.batch} images")
    for grid in (True, False):
        print(measured(given.batch, given.repeats, grid=grid))


if __name__ == "__main__":
    main()
