"""Measure what two searches for an architecture gain by running side by side, on two cores.

The whole script, nas_search.py, on a task of phantoms, each time in a folder of its own: with two
searches one after the other, and with both at once, interleaved, A B A B. What is compared is the
phase of the searches, from the plan that is written before it to the genotypes after it. ::

    python tests/benchmarks/bench_replicas.py                           five minutes, two idle cores
    python tests/benchmarks/bench_replicas.py --smoke                   that it runs, in a minute
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "nas_search.py"
ALIKE = ["beside={random: 0, golden: false}", "comparison.rivals={}", "comparison.seeds=1"]
ALIKE += ["retraining.steps=1"]  # what is retrained is of no matter here
SIDE_BY_SIDE = "resources.supernet.side_by_side"


def seconds(at_once: int, settings: list[str], *options: str) -> float:
    """Return the seconds of the searches of one run of the script, so many of them at once."""
    changes = [f"--set={each}" for each in (*ALIKE, *settings, f"{SIDE_BY_SIDE}={at_once}")]
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [sys.executable, str(SCRIPT), "--out", "run", *options, *changes],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise SystemExit(ended.stderr)
        begun, done = (Path(folder, "run", name) for name in ("plan.json", "genotypes.json"))
        return done.stat().st_mtime - begun.stat().st_mtime


def main() -> None:
    """Print the seconds of each run, and the ratio of each pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150, help="of a search, above 80")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a pair of runs of a few steps")
    given = parser.parse_args()
    settings = [] if given.smoke else [f"supernet.steps={given.steps}"]
    options = ["--smoke"] if given.smoke else []
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    ratios = []
    for number in range(1 if given.smoke else given.repeats):
        alone, both = (seconds(at_once, settings, *options) for at_once in (1, 2))
        ratios.append(alone / both)
        print(
            f"{number}: one after the other {alone:.1f} s, at once {both:.1f} s, {ratios[-1]:.2f}x",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.2f}x, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
