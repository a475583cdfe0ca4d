"""What two SimCLR views cost per image: by the batch here, one at a time in torchvision v2.

python tests/benchmarks/bench_crops.py --size 32

Both crop, resize antialiased, mirror, jitter colours, take colour away and blur with the same
probabilities, uint8 in and normalised float32 out. CPU seconds count, so a busy machine does not
change the ratio; torchvision takes an image at a time, as a data set hands it over.
"""

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import v2

from raykb.data.crop_views import CropsView
from raykb.data.crops import RandomCrops
from raykb.data.views import CropFlipView

MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]


def of_torchvision(size: int) -> nn.Module:
    """Return SimCLR's view of one uint8 image, as torchvision has it."""
    kernel = max(3, size // 10 | 1)
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], 0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def one_at_a_time(images: Tensor, view: nn.Module) -> Tensor:
    return torch.stack([torch.stack([view(image), view(image)]) for image in images])


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def spread(values: list[float], form: str) -> str:
    low, middle, high = (f(values) for f in (min, statistics.median, max))
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    numbers = torch.Generator().manual_seed(0)
    shape = (args.images, 3, args.size, args.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=numbers)
    ours = CropsView(RandomCrops(), CropFlipView(mean=MEAN, std=STD))
    theirs = of_torchvision(args.size)

    def batches(epoch: int) -> None:
        for ids in torch.arange(args.images).split(args.batch):
            ours.finish(ours.train({"images": images[ids]}, ids.numpy(), 0, epoch))

    torch.manual_seed(0)
    part = images[: max(1, args.images // 8)]
    here, there = [], []
    batches(0)
    for epoch in range(1, args.repeats + 1):
        here.append(seconds(functools.partial(batches, epoch)))
        alone = seconds(functools.partial(one_at_a_time, part, theirs))
        there.append(alone * args.images / len(part))
    ratios = (np.array(there) / np.array(here)).tolist()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__} on {args.threads} thread(s), torchvision {torchvision.__version__}; "
        f"two views of {args.images} images of 3 x {args.size} x {args.size}, batches of "
        f"{args.batch}; median (range) of {args.repeats}, interleaved"
    )
    micro = [[1e6 * value / args.images for value in values] for values in (here, there)]
    print(f"raykb        {spread(micro[0], '.1f')} us of CPU an image")
    print(f"torchvision  {spread(micro[1], '.1f')} us of CPU an image")
    print(f"ratio        {spread(ratios, '.1f')}")


if __name__ == "__main__":
    main()
