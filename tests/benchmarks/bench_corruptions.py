"""What each corruption costs per image: by the batch here, one at a time in numpy and scipy.

python tests/benchmarks/bench_corruptions.py --size 32

An image at a time is as in the papers' code: the plain formulas of numpy, scipy and Pillow that the
tests hold the batch against, with numpy's own draws. Spatter is left out: its source has OpenCV,
which is not here. CPU seconds count, so a busy machine does not change the ratio.
"""

import argparse
import functools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from raykb.data.corruptions import CORRUPTIONS, EXTRA, corrupted

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from plain_corruptions import PLAIN, OwnNumbers, to_bytes

SEVERITY = 3
ALL = {name: row for name, row in {**CORRUPTIONS, **EXTRA}.items() if name != "spatter"}


def one_at_a_time(images: np.ndarray, name: str, row: tuple, numbers: OwnNumbers) -> np.ndarray:
    return np.stack([to_bytes(PLAIN[name](image / 255, numbers, *row)) for image in images])


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def spread(values: list[float]) -> str:
    low, middle, high = (f(values) for f in (min, statistics.median, max))
    return f"{middle:9.1f} ({low:.1f}-{high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--alone", type=int, default=32, help="images that are taken one at a time")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=list(ALL), default=list(ALL))
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(args.batch, args.channels, 8, 8, generator=g)
    images = torch.nn.functional.interpolate(coarse, (args.size, args.size), mode="bilinear")
    images = images.mul(255).byte()
    part = images[: args.alone].permute(0, 2, 3, 1).numpy()
    size, ids = "small" if args.size <= 64 else "large", np.arange(args.batch)

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__} on {args.threads} thread(s), numpy {np.__version__}; batch of "
        f"{args.batch} images of {args.channels} x {args.size} x {args.size}, severity {SEVERITY}; "
        f"us of CPU an image, median (range) of {args.repeats}, interleaved"
    )
    print(f"{'corruption':20s}{'by the batch':>26s}{'one at a time':>28s}{'ratio':>8s}")
    here: dict[str, list[float]] = {name: [] for name in args.only}
    there: dict[str, list[float]] = {name: [] for name in args.only}
    for repeat in range(args.repeats + 1):
        for name in args.only:
            row, numbers = getattr(ALL[name], size)[SEVERITY - 1], OwnNumbers(repeat)
            batch = functools.partial(corrupted, images, name, SEVERITY, ids=ids, seed=repeat)
            alone = functools.partial(one_at_a_time, part, name, row, numbers)
            pair = seconds(batch) / len(images), seconds(alone) / len(part)
            if repeat:  # the first round warms up
                here[name].append(1e6 * pair[0])
                there[name].append(1e6 * pair[1])
    totals = [[sum(c) for c in zip(*side.values(), strict=True)] for side in (here, there)]
    rows = [(name, here[name], there[name]) for name in args.only] + [("all", *totals)]
    for name, ours, theirs in rows:
        ratio = statistics.median(theirs) / statistics.median(ours)
        print(f"{name:20s}{spread(ours):>26s}{spread(theirs):>28s}{ratio:8.1f}")


if __name__ == "__main__":
    main()
