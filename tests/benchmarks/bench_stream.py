"""Ray Data against torch's DataLoader: the same files, plan, views and pixels.

    python tests/benchmarks/bench_stream.py rate     images per second, interleaved
    python tests/benchmarks/bench_stream.py wait     share of a step spent waiting for data
    python tests/benchmarks/bench_stream.py nodes    throughput over CPUs, on one raylet and on two

What the training does of each step, as normalisation, is counted with both. All rivals run all the
time; those that are not measured wait with full buffers.
"""

import argparse
import functools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime"))

import ray
import torch
from ray.cluster_utils import Cluster
from shared_photographs import write_photographs

from raykb.data.feed import Feed
from raykb.data.image_views import WeakStrongView
from raykb.data.loader import Loader
from raykb.data.source import Source
from raykb.data.strong import WeakStrong
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import CropFlipView
from raykb.engine.loop import Worker
from raykb.runtime.streams import RayData

PATIENCE_S = 900.0
QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


class Rival:
    """A feed that runs, and waits with full buffers while another is measured."""

    def __init__(self, feed: Feed, batch: int) -> None:
        self.feed, self.batch, began = feed, batch, time.perf_counter()
        self.batches = feed.batches(0, Worker())
        self.began_s = []  # until the first batch, and until the first of a process beside
        for _ in range(2):
            next(self.batches)
            self.began_s.append(time.perf_counter() - began)

    def measured(self, warm: int, steps: int) -> float:
        """Return images per second of ``steps`` steps after ``warm``, which empty the buffers."""
        for _ in range(warm):
            next(self.batches)
        began = time.perf_counter()
        for _ in range(steps):
            next(self.batches)
        return steps * self.batch / (time.perf_counter() - began)


def source(args: argparse.Namespace, folder: str, views_by: str = "workers") -> Source:
    unlabelled = UnlabelledImages(paths=folder, ratio=1, views_by=views_by)
    view = WeakStrongView(WeakStrong(), CropFlipView(mean=[0.45], std=[0.25]))
    return unlabelled.source(unlabelled.examples(0), view, args.batch, 0)


def line(name: str, rates: list[float]) -> str:
    return f"{name:34s}{statistics.median(rates):8.0f} ({min(rates):.0f}-{max(rates):.0f})"


def rate(args: argparse.Namespace, folder: str) -> None:
    """Interleave loaders and streams; with views by the workers and by the training."""
    ray.init(address="local", num_cpus=2, object_store_memory=args.store * 2**20, **QUIET)
    beside = functools.partial(
        RayData,
        workers=2,
        worker_cpus=0.5,
        store_mib=96.0,
        block_steps=args.block,
        timeout_s=PATIENCE_S,
    )
    loader = functools.partial(Loader, workers=2, timeout_s=PATIENCE_S)
    at_home = functools.partial(source, args, folder, "trainer")
    makers = {
        "DataLoader, 2 workers": lambda: loader(source(args, folder)),
        "Ray Data, 2 CPUs": lambda: beside(source(args, folder)),
        "DataLoader, 2, views by trainer": lambda: loader(at_home()),
        "Ray Data, 2, views by trainer": lambda: beside(at_home()),
    }
    makers = {name: make for name, make in makers.items() if args.only in name}
    rivals = {}
    for name, make in makers.items():
        rivals[name] = Rival(make(), args.batch)
        first, second = rivals[name].began_s
        print(f"{name}: first batch {first:.2f} s, first by a worker {second:.2f} s", flush=True)
    rounds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(args.repeats):
        for name, rival in rivals.items():
            rounds[name].append(rival.measured(args.warm, args.steps))
    for rival in rivals.values():
        rival.feed.close()
    print(f"{'':34s}images/s")
    for name, figures in rounds.items():
        print(line(name, figures))
    names = list(makers)
    for ours, theirs in zip(names[1::2], names[::2], strict=True):
        ratios = [a / b for a, b in zip(rounds[ours], rounds[theirs], strict=True)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"{ours} / {theirs}: {statistics.median(ratios):.2f} ({spread})")


def wait(args: argparse.Namespace, folder: str) -> None:
    """Give each a model step of four times the loader's batch time, on a core of its own."""
    ray.init(address="local", num_cpus=2, object_store_memory=args.store * 2**20, **QUIET)
    rivals = {
        "DataLoader, 1 worker": Loader(source(args, folder), workers=1, timeout_s=PATIENCE_S),
        "Ray Data, 1 CPU": RayData(
            source(args, folder),
            workers=1,
            store_mib=96.0,
            block_steps=args.block,
            timeout_s=PATIENCE_S,
        ),
    }
    both = Rival(Loader(source(args, folder), workers=2, timeout_s=PATIENCE_S), args.batch)
    rivals = {name: Rival(feed, args.batch) for name, feed in rivals.items()}
    shares: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(args.repeats):
        step_s = 4 * args.batch / both.measured(args.warm, args.steps)
        for name, rival in rivals.items():
            waited, began = 0.0, time.perf_counter()
            for _ in range(args.steps):
                asked = time.perf_counter()
                next(rival.batches)
                waited += time.perf_counter() - asked
                work(step_s)
            shares[name].append(waited / (time.perf_counter() - began))
    for rival in (both, *rivals.values()):
        rival.feed.close()
    for name, values in shares.items():
        print(
            f"{name:24s} waits {statistics.median(values):6.1%} of a step "
            f"({min(values):.1%}-{max(values):.1%}) with a model step of {step_s:.2f} s"
        )


def work(seconds: float) -> None:
    """Keep this process's core busy, as a model on the CPU does."""
    matrix, end = torch.rand(256, 256), time.perf_counter() + seconds
    while time.perf_counter() < end:
        matrix = (matrix @ matrix).clamp_(0, 1)


@contextmanager
def cluster(nodes: list[int], store: int) -> Iterator[None]:
    """Have a cluster of raylets with so many CPUs each."""
    made = Cluster()
    for number, cpus in enumerate(nodes):
        extra = {"include_dashboard": False} if not number else {}
        made.add_node(num_cpus=cpus, object_store_memory=store * 2**20, **extra)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def nodes(args: argparse.Namespace, folder: str) -> None:
    """Give the views one CPU, two of one raylet, and one each of two raylets."""
    layouts = {"1 raylet of 1 CPU": [1], "1 raylet of 2 CPUs": [2], "2 raylets of 1 CPU": [1, 1]}
    rounds: dict[str, list[float]] = {name: [] for name in layouts}
    for _ in range(args.repeats):
        for name, layout in layouts.items():
            with cluster(layout, args.store):
                feed = RayData(source(args, folder), block_steps=args.block, timeout_s=PATIENCE_S)
                rival = Rival(feed, args.batch)
                rounds[name].append(rival.measured(args.warm, args.steps))
                rival.feed.close()
    print(f"{'':34s}images/s")
    for name, figures in rounds.items():
        print(line(name, figures))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("rate", "wait", "nodes"))
    parser.add_argument("--photographs", type=Path, help="folder of Parquet files, else made")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--form", choices=("JPEG", "PNG"), default="JPEG")
    parser.add_argument("--batch", type=int, default=224)
    parser.add_argument("--block", type=int, default=4, help="steps of a block")
    parser.add_argument("--store", type=int, default=512, help="MiB of the object store")
    parser.add_argument("--warm", type=int, default=10)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="of the names of the rivals")
    args = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, ray {ray.__version__}, torch {torch.__version__}; "
        f"{args.form} of 96 x 96 pixels, batches of {args.batch}, {args.steps} steps, median "
        f"(range) of {args.repeats}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() if args.photographs is None else nullcontext() as made:
        folder = args.photographs or write_photographs(
            Path(made), args.images, files=8, form=args.form
        )
        {"rate": rate, "wait": wait, "nodes": nodes}[args.what](args, str(folder))
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
