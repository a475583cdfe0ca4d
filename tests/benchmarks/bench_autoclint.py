"""Predictions per minute of AutoCLINT with and without what it keeps on the device.

python tests/benchmarks/bench_autoclint.py --seconds 20

Images of 96 pixels that have to be resized to 64: once, or in every step and prediction. Who plays
predicts after each epoch of five steps, so that the rate is that of its work: left to itself it
predicts when its network has become better, which says nothing of speed. The two play in turn,
each first as often as the other (of an even number), from equal weights. Minutes are those of the
process on one thread, which a busy machine hardly disturbs.
"""

import argparse
import os
import platform
import statistics
import time
from typing import Any

import numpy as np
import torch

from raykb.augment.autoclint.player import Player
from raykb.augment.autoclint.settings import AutoClint
from raykb.augment.autoclint.strategy import Epoch, Strategy
from raykb.evaluate.ingestion import GameData, Part, ingestion
from raykb.models.anytime import AnytimeNetwork
from raykb.models.small_convnet import small_convnet


class EachEpoch(Strategy):
    """Predicts after each epoch, and plays until the budget is spent."""

    def leaves(self, epoch: Epoch) -> bool:
        super().leaves(epoch)
        self.done = False
        return True


class Eager(Player):
    """Plays by it."""

    def _read(self, dataset: Any) -> None:
        super()._read(dataset)
        self.strategy = EachEpoch(self.settings, len(self.rows))


def part(count: int, seed: int) -> Part:
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=count)
    images = rng.integers(0, 156, (count, 1, 3, 96, 96), dtype=np.uint8)
    images[..., :48, :] += (labels * 10).astype(np.uint8).reshape(-1, 1, 1, 1, 1)
    return Part(images, np.eye(10, dtype=np.float32)[labels])


def per_minute(data: GameData, seconds: float, cache: bool, seed: int = 0) -> float:
    """Play a game; return its predictions per minute, with the last, which may be late."""
    torch.manual_seed(seed)
    settings = AutoClint(cache=cache, candidates=0, steps=5)
    network = AnytimeNetwork(small_convnet(2, 3), classes=10, channels=3)
    clock = time.process_time
    game = ingestion(Eager(settings, network, seed=seed, clock=clock), data, seconds, clock=clock)
    return 60 * (len(game.ledger) + game.late) / game.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = GameData(part(1000, 0), part(300, 1))
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, 1 thread")
    per_minute(data, 1.0, True)  # what is slow once
    ratios = []
    for repeat in range(args.repeats):
        turns = (True, False) if repeat % 2 else (False, True)
        rates = {cache: per_minute(data, args.seconds, cache, repeat) for cache in turns}
        ratios.append(rates[True] / rates[False])
        print(
            f"cached {rates[True]:6.1f}, not {rates[False]:6.1f} predictions a CPU minute, "
            f"{ratios[-1]:.2f} times; load {os.getloadavg()[0]:.1f}"
        )
    print(f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
