"""What it costs to score one policy: this package's evaluator and one as the official code's.

1,600 images of 3 x 32 x 32, five copies of each, a network of three convolutions, the same theta,
images and seeded random policies for both. The rival starts five loaders with four workers each
for every policy, as the official code does; what that start costs is measured with the same
loaders over no images and taken off in the second line. Runs are interleaved, A B A B. ::

    python tests/benchmarks/bench_policy_evaluation.py --policies 20 --repeats 3
"""

import argparse
import itertools
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykb.augment.fast_autoaugment import PolicyEvaluator
from raykb.augment.policy import Policy
from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.engine.memory import keep_freed_memory
from raykb.engine.seeding import generator

sys.path.append(str(Path(__file__).parents[1] / "augment"))
from pillow_evaluator import PillowImages, evaluate

MEAN, STD, CUTOUT = (0.2860,) * 3, (0.3530,) * 3, 16


class Cost(NamedTuple):
    """Seconds by the clock, and seconds of all processors, ended child processes included."""

    wall_s: float
    cpu_s: float


class Run(NamedTuple):
    """One policy scored by both: costs, and mean losses with their standard errors."""

    ours: Cost
    rival: Cost
    start: Cost
    difference: float  # of the mean losses, in combined standard errors


def cost(work: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Cost, Tensor]:
    """Return what ``work`` costs, and the losses it returns."""
    before, start = os.times(), time.perf_counter()
    losses, _ = work()
    wall, after = time.perf_counter() - start, os.times()
    return Cost(wall, sum(after[:4]) - sum(before[:4])), losses


def mean_and_variance(losses: Tensor) -> tuple[float, float]:
    """Return the mean of losses (R, N) and the variance of that mean over new augmentations."""
    variance = losses.double().var(dim=0).mean() / losses.numel()
    return losses.double().mean().item(), variance.item()


def tiny_network(classes: int) -> nn.Sequential:
    """Return three strided convolutions and a linear layer."""
    widths = (3, 16, 32, 64)
    blocks = [
        layer
        for n_in, n_out in itertools.pairwise(widths)
        for layer in (nn.Conv2d(n_in, n_out, 3, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def train(network: nn.Module, data: ImageSet, view: CropFlipView, *, steps: int, seed: int) -> None:
    """Train for a moment, so that losses depend on what the images show."""
    stream = generator(seed, "train")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        rows = torch.randint(len(data), (128,), generator=stream).numpy()
        uniforms = torch.rand(128, view.draws, dtype=torch.float64, generator=stream)
        logits = network(view(torch.from_numpy(data.images[rows]), uniforms))
        optimizer.zero_grad()
        F.cross_entropy(logits, torch.from_numpy(data.labels[rows])).backward()
        optimizer.step()


def measure(
    *, images: int = 1600, copies: int = 5, policies: int = 20, repeats: int = 3, seed: int = 0
) -> list[Run]:
    """Return the runs of ``repeats`` rounds over the same random policies."""
    keep_freed_memory()  # as every evaluator does; the rival, in the same process, has it too
    train_set, held_out = DATASETS["fashion_mnist_sample"](
        image_size=32, channels=3, train_size=4000, test_size=images
    )
    view = CropFlipView(mean=MEAN, std=STD, cutout=CUTOUT)
    torch.manual_seed(seed)
    theta = tiny_network(len(held_out.classes))
    train(theta, train_set, view, steps=200, seed=seed)
    theta.eval()
    evaluator = PolicyEvaluator(
        theta,
        held_out.images,
        labels=held_out.labels,
        ids=held_out.ids,
        indices=np.arange(images),
        view=view,
        copies=copies,
        seed=seed,
    )
    pixels = np.ascontiguousarray(held_out.images.transpose(0, 2, 3, 1))

    def rival(policy: Policy, count: int) -> tuple[Tensor, Tensor]:
        arrays = (pixels[:count], held_out.labels[:count])
        dataset = PillowImages(*arrays, policy.sub_policies, mean=MEAN, std=STD, length=CUTOUT)
        return evaluate(theta, dataset, copies=copies)

    def both(policy: Policy) -> Run:
        our_cost, ours = cost(lambda: evaluator.evaluate_chunk(policy, 0))
        rival_cost, theirs = cost(lambda: rival(policy, images))
        start_cost, _ = cost(lambda: rival(policy, 0))
        (our_mean, our_variance), (mean, variance) = map(mean_and_variance, (ours, theirs))
        error = (our_variance + variance) ** 0.5
        return Run(our_cost, rival_cost, start_cost, (our_mean - mean) / error)

    candidates = [Policy.random(5, 2, seed + number) for number in range(policies)]
    both(candidates[0])  # warm both up
    return [both(policy) for _ in range(repeats) for policy in candidates]


def spread(values: list[float], digits: int = 3) -> str:
    """Return median and range."""
    return (
        f"{statistics.median(values):.{digits}f} "
        f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    )


def report(runs: list[Run]) -> str:
    """Return the table: seconds per policy and ratios within each pair, median (range)."""
    lines = [f"{'seconds per policy':34s}{'raykb':>26s}{'rival':>26s}{'ratio':>22s}"]
    for label, field in (("wall", "wall_s"), ("processors", "cpu_s")):
        ours = [getattr(run.ours, field) for run in runs]
        full = [getattr(run.rival, field) for run in runs]
        kept = [f - getattr(run.start, field) for f, run in zip(full, runs, strict=True)]
        for what, theirs in (("with the loaders' start", full), ("without", kept)):
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            lines.append(
                f"{label + ', ' + what:34s}{spread(ours):>26s}{spread(theirs):>26s}"
                f"{spread(ratios, 1):>22s}"
            )
    differences = [run.difference for run in runs]
    lines.append(
        "mean loss, raykb minus rival, in combined standard errors: "
        f"{min(differences):.1f} to {max(differences):.1f}"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1600, help="held-out images, at most 2000")
    parser.add_argument("--copies", type=int, default=5, help="of each image, a loader for each")
    parser.add_argument("--policies", type=int, default=20, help="random candidates")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all candidates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, for both")
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__} on {torch.get_num_threads()} threads, Pillow {PIL.__version__}; "
        + ", ".join(f"{name} {value}" for name, value in arguments.items())
    )
    print(report(measure(**arguments)))


if __name__ == "__main__":
    main()
