"""Images per second of a SimCLR step, data included: raykb, and lightly's own loop.

python tests/benchmarks/bench_simclr.py --steps 40

Both train the same network on the same images in batches of one size with views of the same kind:
raykb makes them by the batch, in its training or in workers beside it; lightly's transform makes
them one at a time in a DataLoader of two workers. Each has as many threads of torch and workers as
made it fastest on two cores. The two take turns, a round each. The first round of each is not
counted, and neither are the first steps of a round: their batches were made ahead while the other
one had its turn.

Images per second are those of a machine that has nothing else to do, for who shares its cores gets
what the scheduler gives to its processes. Images per CPU second, of the training and its workers,
are nearly the same on a busy one.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import lightly
import torch
from lightly.loss import NTXentLoss
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from raykb.data.crop_views import CropsView
from raykb.data.crops import RandomCrops
from raykb.data.datasets import open_records
from raykb.data.images import ImageSet
from raykb.data.loader import Loader
from raykb.data.loading import load
from raykb.data.order import Shuffled
from raykb.data.source import Source
from raykb.data.views import CropFlipView
from raykb.engine.loop import Worker
from raykb.engine.objective import Learner, Task, learning_step
from raykb.engine.optim import sgd
from raykb.models import MODELS
from raykb.parts.backbone import freeze_classifier
from raykb.parts.heads import projection_head
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.simclr import SimCLR

MEAN, STD, SIDE = [0.286], [0.353], 28
AHEAD = 4  # batches that two workers have ready


class Pictures(Dataset[list[Tensor]]):
    """Images one at a time, as lightly's transform takes them."""

    def __init__(self, images: ImageSet) -> None:
        self.pictures = [Image.fromarray(image[0]).convert("RGB") for image in images.images]
        self.transform = SimCLRTransform(
            input_size=SIDE,
            cj_strength=0.5,
            min_scale=0.3,
            gaussian_blur=0.0,
            normalize={"mean": 3 * MEAN, "std": 3 * STD},
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(self.pictures[row])
        return views


def network_of(channels: int) -> nn.Module:
    torch.manual_seed(0)
    network = MODELS["small_convnet"](10, channels)
    freeze_classifier(network)
    return network


def ours(images: ImageSet, batch: int, workers: int) -> Iterator[None]:
    """Yield after each step of raykb, without an end."""
    crops = RandomCrops(scale=(0.3, 1.0), strength=0.5, blur=(0.0,))
    view = CropsView(crops, CropFlipView(mean=MEAN, std=STD))
    order, maker = Shuffled(len(images), batch, 0), "workers" if workers else "trainer"
    feed = Loader(Source(images, order, view, 0, maker), workers=workers)
    network = network_of(3)
    learner = Learner(network, SimCLR(Task(network, 1000)))
    optimizer, step = sgd(learner, lr=0.1), learning_step(learner)
    for number, fields in enumerate(feed.batches(0, Worker())):
        optimizer.zero_grad()
        step(ViewsBatch(fields["views"], fields["ids"]), number)
        optimizer.step()
        yield


def theirs(images: ImageSet, batch: int) -> Iterator[None]:
    """Yield after each step of lightly's loop, without an end."""
    loader = DataLoader(
        Pictures(images),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )
    network = network_of(3)
    learner = nn.ModuleList([network, projection_head(network.width, 128, negative_slope=0.0)])
    criterion, optimizer = NTXentLoss(temperature=0.5), sgd(learner, lr=0.1)
    for first, second in itertools.chain.from_iterable(itertools.repeat(loader)):
        optimizer.zero_grad()
        rows = [learner[1](network.features(view)) for view in (first, second)]
        criterion(*rows).backward()
        optimizer.step()
        yield


class Turns:
    """Steps of a training that takes turns with another, and what they cost it and its workers."""

    def __init__(self, steps: Iterator[None], batch: int, threads: int) -> None:
        before = set(multiprocessing.active_children())
        self.steps, self.batch, self.threads = steps, batch, threads
        next(steps)  # starts the workers
        started = set(multiprocessing.active_children()) - before
        self.processes = [os.getpid(), *(worker.pid for worker in started)]

    def rates(self, count: int) -> tuple[float, float]:
        """Return images per second, and per CPU second, after the steps that were made ahead."""
        torch.set_num_threads(self.threads)
        self._take(AHEAD)
        start, used = time.perf_counter(), self._cpu_s()
        self._take(count)
        images = count * self.batch
        return images / (time.perf_counter() - start), images / (self._cpu_s() - used)

    def _take(self, count: int) -> None:
        for _ in itertools.islice(self.steps, count):
            pass

    def _cpu_s(self) -> float:
        """Return the CPU seconds of all its processes (proc(5): ns on the CPU come first)."""
        files = (thread for pid in self.processes for thread in Path(f"/proc/{pid}/task").iterdir())
        return sum(int((file / "schedstat").read_text().split()[0]) for file in files) / 1e9


def spread(values: list[float], form: str) -> str:
    low, middle, high = (f(values) for f in (min, statistics.median, max))
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="of a round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of torch, in raykb's training")
    parser.add_argument("--workers", type=int, default=0, help="that make raykb's views")
    parser.add_argument("--their-threads", type=int, default=1, help="in lightly's loop")
    args = parser.parse_args()

    records, _, options = open_records(name="fashion_mnist_sample", channels=3)
    images = load(records, options)
    running = [
        Turns(ours(images, args.batch, args.workers), args.batch, args.threads),
        Turns(theirs(images, args.batch), args.batch, args.their_threads),
    ]
    rounds = [[turns.rates(args.steps) for turns in running] for _ in range(args.rounds + 1)][1:]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}, lightly {lightly.__version__}; {args.threads} and "
        f"{args.their_threads} thread(s), {args.workers} and 2 workers; batches of "
        f"{args.batch} images of 3 x {SIDE} x {SIDE}, {args.rounds} rounds of {args.steps} steps"
    )
    for kind, unit in enumerate(("second", "CPU second")):
        here, there = ([rates[who][kind] for rates in rounds] for who in (0, 1))
        print(f"raykb    {spread(here, '.0f')} images a {unit}")
        print(f"lightly  {spread(there, '.0f')} images a {unit}")
        print(f"ratio    {spread([a / b for a, b in zip(here, there, strict=True)], '.2f')}")


if __name__ == "__main__":
    main()
