"""Measure what surrounds the evaluation of a policy: start, driver overhead, memory.

    python tests/benchmarks/bench_search.py startup     from the command to the first training step
    python tests/benchmarks/bench_search.py overhead    driver seconds per candidate, tracking on
    python tests/benchmarks/bench_search.py memory      unique memory of a further evaluator

The first two run the real script in a folder of their own, the third the search alone.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import numpy as np
import ray

from raykb.augment.density_matching import DensityMatching
from raykb.augment.fast_autoaugment import search_space
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.models import MODELS
from raykb.runtime.resources import WorkerResources
from raykb.runtime.storage import LocalStorage
from raykb.runtime.studies import LEDGER, Study
from raykb.runtime.tune import search

SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "fastaa_search.py"
SHORT = ["theta.epochs=2", "final.epochs=2", "comparison.seeds=1"]
SHORT += ["comparison.augmentations=[searched_policy]"]


def run_script(folder: Path, *settings: str) -> float:
    """Run the script in ``folder``; return when it was started."""
    options = [f"--set={setting}" for setting in (*SHORT, *settings)]
    began = time.time()
    subprocess.run(
        [sys.executable, str(SCRIPT), "--out", "run", *options],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return began


def startup(repeats: int) -> None:
    """Print the seconds from the command to the first step of a theta training."""
    seconds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            began = run_script(Path(folder), "search.width=6", "search.copies=1")
            client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
            experiment = client.get_experiment_by_name("fast-autoaugment")
            runs = client.search_runs([experiment.experiment_id])
            thetas = [r for r in runs if r.info.run_name.startswith("theta/")]
            points = [client.get_metric_history(r.info.run_id, "time/build_s")[0] for r in thetas]
            seconds.append(min(point.timestamp for point in points) / 1000 - began)
    print(f"command to first theta step: {spread(seconds)} s, {repeats} runs")


def overhead(repeats: int) -> None:
    """Print (wall - evaluator seconds / evaluators) / candidates, first to last candidate."""
    values, rates = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            run_script(Path(folder))
            records = list(LocalStorage(Path(folder, "run")).records(LEDGER))
        told = [record for record in records if record["event"] == "told"]
        evaluators = len({record["study"].split("/")[0] for record in told})
        counted = told[evaluators:]  # the first of each evaluator begins before the clock does
        wall = told[-1]["time"] - told[evaluators - 1]["time"]
        busy = sum(record["figures"]["seconds"] for record in counted) / evaluators
        values.append((wall - busy) / len(counted))
        rates.append(len(counted) / wall)
    print(f"driver overhead per candidate: {spread(values, 4)} s, {repeats} runs")
    print(f"candidates per second: {spread(rates)}, {evaluators} evaluators")


class Weighed(DensityMatching):
    """Density matching that also reports the private memory of its process."""

    def score(self, candidate, budget):
        """Return the scores and ``private_mib``."""
        figures = super().score(candidate, budget)
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        private = sum(int(line.split()[1]) for line in lines if line.startswith("Private"))
        return figures | {"private_mib": private / 1024}


def memory(images: int) -> None:
    """Print what one more evaluator costs in private memory, for few and for many images."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    numbers = np.random.default_rng(0)
    private = {}
    for count in (1000, images):
        pixels = numbers.integers(0, 256, (count, 3, 32, 32), np.uint8)
        train = ImageSet(
            pixels, np.arange(count) % 10, np.arange(count), tuple(map(str, range(10)))
        )
        held_out = [np.arange(count)[:1000], np.arange(count)[-1000:]]
        score = Weighed(
            model={"name": "small_convnet"},
            view=CropFlipView(mean=[0.5], std=[0.25]),
            held_out=held_out,
            chunks=[[np.arange(1000)]] * 2,
            copies=5,
            reward="max_accuracy",
            seed=0,
            batch_size=500,
            device="cpu",
            autocast=False,
        )
        theta = MODELS["small_convnet"](10, 3).state_dict()
        with tempfile.TemporaryDirectory() as folder:
            candidates = search(
                [Study(f"split-{k}/0", f"split-{k}", k, {"split": k}) for k in range(2)],
                space=search_space(),
                width=4,
                score=score,
                shared={"train": train, "thetas": [theta, theta]},
                storage=LocalStorage(Path(folder)),
                resources=WorkerResources(),
                parallel=2,
            )
        private[count] = [c.figures["private_mib"] for c in candidates if c.number == 3]
        print(
            f"{count} images, {pixels.nbytes / 2**20:.0f} MiB: private memory of the two "
            f"evaluators {', '.join(f'{value:.0f}' for value in private[count])} MiB"
        )
    more = statistics.mean(private[images]) - statistics.mean(private[1000])
    print(f"private memory per evaluator that comes with the larger set: {more:.1f} MiB")


def spread(values: list[float], digits: int = 2) -> str:
    """Return median and range."""
    median = statistics.median(values)
    return f"median {median:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["startup", "overhead", "memory"])
    parser.add_argument("--repeats", type=int, default=3, help="runs of the script")
    parser.add_argument("--images", type=int, default=60_000, help="for memory: the larger set")
    given = parser.parse_args()
    if given.what == "memory":
        memory(given.images)
    else:
        {"startup": startup, "overhead": overhead}[given.what](given.repeats)
