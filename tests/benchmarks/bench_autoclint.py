"""Predictions per minute of AutoCLINT with and without what it keeps on the device.

python tests/benchmarks/bench_autoclint.py --seconds 20

Images of 96 pixels that have to be resized to 64: once, or in every step and prediction. Minutes
are those of the process on one thread, which a busy machine hardly disturbs.
"""

import argparse
import os
import platform
import time

import numpy as np
import torch

from raykb.augment.autoclint.player import Player
from raykb.augment.autoclint.settings import AutoClint
from raykb.evaluate.ingestion import Game, GameData, Part, ingestion
from raykb.models.anytime import AnytimeNetwork
from raykb.models.small_convnet import small_convnet


def part(count: int, seed: int) -> Part:
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=count)
    images = rng.integers(0, 156, (count, 1, 3, 96, 96), dtype=np.uint8)
    images[..., :48, :] += (labels * 10).astype(np.uint8).reshape(-1, 1, 1, 1, 1)
    return Part(images, np.eye(10, dtype=np.float32)[labels])


def played(data: GameData, seconds: float, cache: bool) -> Game:
    settings = AutoClint(
        cache=cache, wait_s=0, wait_more_s=0, reserve_s=0, perfect=1.1, candidates=0, steps=5
    )
    network = AnytimeNetwork(small_convnet(2, 3), classes=10, channels=3)
    clock = time.process_time
    return ingestion(Player(settings, network, seed=0, clock=clock), data, seconds, clock=clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = GameData(part(1000, 0), part(300, 1))
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, 1 thread")
    played(data, 1.0, True)  # what is slow once
    for _ in range(args.repeats):
        for cache in (True, False):
            game = played(data, args.seconds, cache)
            rate = 60 * len(game.ledger) / game.seconds
            print(f"cache {cache!s:5}: {rate:6.1f} predictions a CPU minute, ALC {game.alc:.3f}")


if __name__ == "__main__":
    main()
