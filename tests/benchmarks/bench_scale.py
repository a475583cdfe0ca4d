"""Measure what a piece of work costs the driver, against the number of nodes.

    python tests/benchmarks/bench_scale.py --nodes 1 2 8 --trainings 200 --candidates 500

Ray's cluster of several raylets on this host, each a node of one logical CPU; the head has none. A
piece does next to nothing: a training of one step, or the score of a candidate. What is counted
begins once every node has done two, so that the start of workers does not count. All nodes share
the CPUs of this host, so the driver's own CPU seconds say more of a large cluster than the clock.

Each cell is a process and a cluster of its own. It prints a Markdown table.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import ray  # noqa: E402
import ray.cluster_utils  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from raykb.engine.loop import Training, Worker  # noqa: E402
from raykb.report.tables import markdown  # noqa: E402
from raykb.runtime.resources import WorkerResources  # noqa: E402
from raykb.runtime.storage import LocalStorage  # noqa: E402
from raykb.runtime.studies import Study  # noqa: E402
from raykb.runtime.train import train  # noqa: E402
from raykb.runtime.tune import search  # noqa: E402
from raykb.runtime.work import TrainJob  # noqa: E402

MIB, PAGE = 2**20, os.sysconf("SC_PAGESIZE")


def no_op(worker: Worker) -> Training:
    """Return a training of one step that does nothing."""
    return Training(
        step=lambda batch, number: {"loss": torch.zeros(())},
        update=lambda step: {},
        batches=lambda start: iter([None]),
        steps=1,
        parts={"model": nn.Linear(1, 1)},
    )


class Nothing:
    """A score that is there at once."""

    def setup(self) -> None:
        """Load nothing."""

    def score(self, candidate: dict, budget: int) -> dict[str, float]:
        """Return the parameter."""
        return {"reward": candidate["params"]["x"]}


class Clock:
    """Time, the driver's CPU seconds and its memory, at every piece that is done."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, int]] = []

    def __call__(self, piece: object) -> None:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        self.marks.append((time.monotonic(), time.process_time(), resident))

    def figures(self, first: int) -> dict[str, float]:
        """Return what a piece took after the first ones, and what the driver grew by meanwhile."""
        (began, spent, before), (ended, all_spent, after) = self.marks[first], self.marks[-1]
        pieces = len(self.marks) - 1 - first
        return {
            "wall_s": (ended - began) / pieces,
            "driver_s": (all_spent - spent) / pieces,
            "grown_mib": (after - before) / MIB,
        }


@contextlib.contextmanager
def cluster_of(nodes: int) -> Iterator[None]:
    """Have a cluster of so many nodes, and be connected to it."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # workers inherit it
    # its note of a running cluster is for nobody else; paths of sockets are short
    os.environ["RAY_TMPDIR"] = folder = tempfile.mkdtemp(prefix="rkb", dir="/tmp")
    cluster = ray.cluster_utils.Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False)  # the head
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=80 * MIB)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def cell(kind: str, nodes: int, pieces: int) -> dict[str, float]:
    """Return the figures of one kind of work on a cluster of its own."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, cluster_of(nodes):
        storage = LocalStorage(Path(folder))
        if kind == "trainings":
            train(
                [TrainJob(f"training-{n}", no_op, {}, n) for n in range(pieces)],
                storage=storage,
                parallel=nodes,
                on_letter=lambda letter: None,
                on_result=clock,
            )
        else:
            search(
                [Study(f"study-{n}", f"study-{n}", n, {}) for n in range(nodes)],
                space={"x": (0.0, 1.0)},
                width=-(-pieces // nodes),
                score=Nothing(),
                shared={},
                storage=storage,
                resources=WorkerResources(),
                parallel=nodes,
                sampler_name="random",
                on_told=clock,
            )
    return clock.figures(2 * nodes)


def main() -> None:
    """Measure every cell in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--trainings", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, nodes, pieces = given.one
        print(json.dumps(cell(kind, int(nodes), int(pieces))))
        return
    rows = []
    for kind, pieces in (("trainings", given.trainings), ("candidates", given.candidates)):
        for nodes in given.nodes:
            command = [sys.executable, __file__, "--one", kind, str(nodes), str(pieces)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            shown = [1e3 * found["wall_s"], 1e3 * found["driver_s"], found["grown_mib"]]
            rows.append([kind, str(nodes), str(pieces), *(f"{value:.1f}" for value in shown)])
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    head = ["work", "nodes", "pieces", "a piece by the clock, ms", "driver's CPU, ms"]
    print(markdown([*head, "driver grows by, MiB"], rows))


if __name__ == "__main__":
    main()
